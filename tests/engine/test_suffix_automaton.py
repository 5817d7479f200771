"""The automaton against a plain search."""

from hypothesis import given
from hypothesis import strategies as st

from epilogue.engine.suffix_automaton import SuffixAutomaton

texts = st.integers(1, 4).flatmap(lambda letters: st.lists(st.integers(0, letters - 1), max_size=60))


def longest_earlier(text: list[int], end: list[int]) -> int:
    """How much of the end of ``end`` stands in ``text`` with something behind it."""
    return (
        max(
            n
            for n in range(min(len(text), len(end) + 1))
            if any(text[i : i + n] == end[len(end) - n :] for i in range(len(text) - n))
        )
        if text
        else 0
    )


@given(texts)
def test_every_end_of_a_growing_text(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for position, token_id in enumerate(text):
        automaton.extend([token_id])
        written = text[: position + 1]
        length, place = automaton.found(*automaton.end)
        assert length == longest_earlier(written, written)
        assert length == 0 or written[place - length : place] == written[len(written) - length :]
        assert place < len(written)


@given(texts, texts)
def test_another_text_walks_through(book: list[int], text: list[int]) -> None:
    automaton, at = SuffixAutomaton(book), (0, 0)
    for position, token_id in enumerate(text):
        at = automaton.step(*at, token_id)
        written = text[: position + 1]
        length, place = automaton.found(*at)
        assert length == longest_earlier(book, written)
        if length:
            assert book[place - length : place] == written[len(written) - length :]
            assert place < len(book)


@given(texts)
def test_it_is_as_small_as_an_automaton_of_suffixes(text: list[int]) -> None:
    assert len(SuffixAutomaton(text)._edges) <= max(2, 2 * len(text))


def test_what_was_said_last_is_found() -> None:
    automaton = SuffixAutomaton([1, 2, 3, 9, 1, 2, 4, 9, 1, 2])
    assert automaton.found(*automaton.end) == (3, 6)
    automaton = SuffixAutomaton([1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2])
    assert automaton.found(*automaton.end) == (2, 8)
