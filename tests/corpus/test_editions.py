"""Duplicates, editions and contained works, and the counting of shared words against a plain count."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corpus.conftest import Write
from epilogue.corpus.editions import Edition, Repeat, _shared_hashes, find_repeats
from epilogue.corpus.shingles import shingle_hashes, sketch, word_hashes


def edition(text: str, noise: float = 0.0) -> Edition:
    words = word_hashes(text)
    hashes = np.unique(shingle_hashes(words, 5))  # all of them: these books are short
    return Edition(text_hash=words.tobytes().hex(), sketch=hashes, noise=noise, num_chars=len(text))


def test_of_the_same_book_the_cleanest_then_the_longest_stays(novel: Write) -> None:
    worse, better, other = novel(1) + " X", novel(1) + " A last word more.", novel(2)
    assert find_repeats([edition(worse), edition(other), edition(better)]).keys() == {0}
    assert find_repeats([edition(worse), edition(better, noise=0.1)]).keys() == {1}
    assert find_repeats([edition(novel(1)), edition(novel(1))]) == {1: Repeat("duplicate", 0, 1.0)}


def test_a_part_goes_and_the_whole_stays_whatever_the_order(novel: Write) -> None:
    parts = [edition(novel(seed, 1500)) for seed in (1, 2)]
    whole = edition(f"{novel(1, 1500)}\n\n{novel(2, 1500)}\n\n{novel(3, 3000)}")
    assert {i: repeat.kind for i, repeat in find_repeats([*parts, whole]).items()} == {0: "contained", 1: "contained"}
    assert find_repeats([whole, *parts]).keys() == {1, 2}


def test_what_a_repeat_names_always_stays(novel: Write) -> None:
    small, copy = novel(1, 900), novel(1, 900) + " Indeed."
    books = [edition(text) for text in (small, copy, copy + novel(2, 3000), copy + novel(2, 3000) + novel(3, 9000))]
    repeats = find_repeats(books)
    assert {repeat.of for repeat in repeats.values()} == {3}


def test_no_books_have_no_repeats() -> None:
    assert find_repeats([]) == {}


@given(st.lists(st.sets(st.integers(0, 12)), max_size=8))
def test_shared_hashes_are_those_of_a_plain_count(sets: list[set[int]]) -> None:
    shared = _shared_hashes([np.array(sorted(hashes), dtype=np.uint64) for hashes in sets])
    for i, one in enumerate(sets):
        for j, two in enumerate(sets):
            if i != j:
                assert shared[i].get(j, 0) == len(one & two)


def test_a_sketch_estimates_how_much_of_a_book_is_in_another() -> None:
    words = np.arange(200_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    part, whole = sketch(words[40_000:100_000]), sketch(words)
    assert abs(len(whole) - 200_000 / 256) < 100
    assert set(part.tolist()) < set(whole.tolist())
    half = sketch(np.concatenate([words[:30_000], words[:30_000] + np.uint64(1)]))
    assert abs(len(np.intersect1d(half, whole)) / len(half) - 0.5) < 0.15
