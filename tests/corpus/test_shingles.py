"""Runs of words are numbers that are equal where the words are, whatever their case and punctuation."""

from hypothesis import given
from hypothesis import strategies as st

from epilogue.corpus.books import SourceBook
from epilogue.corpus.contamination import hold_out
from epilogue.corpus.shingles import shingle_hashes, word_hashes

WORDS = st.lists(st.sampled_from(["the", "sea", "was", "grey", "and", "cold"]), max_size=60)


@given(WORDS, st.integers(1, 14))
def test_hashes_are_equal_where_the_words_are(words: list[str], num_words: int) -> None:
    hashes = shingle_hashes(word_hashes(" ".join(words)), num_words).tolist()
    runs = [tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)]
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs))
    assert len(set(zip(hashes, runs, strict=True))) == len(set(runs))


def test_case_and_marks_make_no_difference() -> None:
    assert word_hashes("“It’s THE sea—grey.”").tolist() == word_hashes("It's the Sea: grey").tolist()
    assert word_hashes("the sea").tolist() != word_hashes("sea the").tolist()


@given(WORDS, WORDS)
def test_held_out_runs_are_found_as_a_plain_search_finds_them(one: list[str], two: list[str]) -> None:
    held_out = hold_out([SourceBook(id="held", source="", title="Held", text=" ".join(one))])
    runs = [{tuple(words[i : i + 13]) for i in range(len(words) - 12)} for words in (one, two)]
    shared = len(runs[0] & runs[1])
    is_out = shared > 0.01 * min(map(len, runs)) if all(runs) else False
    book = SourceBook(id="other", source="", text=" ".join(two))
    assert bool(held_out.find(book, book.words)) == is_out
