"""Banned phrases against a search in the whole text."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epilogue.text.phrases import PhraseGuard

VOCABULARY = [b"a", b"b", b"ab", b"A", b" ", "é".encode()[:1], "é".encode()[1:], b"ba ba", "İ".encode()]
TOKENIZER = cast(Any, SimpleNamespace(token_bytes=VOCABULARY.__getitem__))


def test_a_phrase_is_taken_back_from_where_it_began() -> None:
    guard = PhraseGuard(TOKENIZER, ["b A"])
    assert [guard.push(i) for i in (0, 2, 4, 0)] == [0, 0, 0, 3]
    assert guard.finish() == [0]


def test_an_empty_phrase_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        PhraseGuard(TOKENIZER, ["a", ""])


@given(
    ids=st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=40),
    phrases=st.lists(st.text("abAB é", min_size=1, max_size=4), max_size=3),
)
def test_what_is_released_has_no_phrase_and_all_else_is_there(ids: list[int], phrases: list[str]) -> None:
    guard = PhraseGuard(TOKENIZER, phrases)
    kept: list[int] = []
    released: list[int] = []
    for token_id in ids:
        kept.append(token_id)
        if count := guard.push(token_id):
            del kept[-count:]
        released += guard.release()
        assert released == kept[: len(released)]
    released += guard.finish()
    assert released == kept
    text = b"".join(VOCABULARY[i] for i in kept).decode(errors="replace").lower()
    assert not any(phrase.lower() in text for phrase in phrases)


def test_text_far_enough_from_its_end_is_released() -> None:
    guard = PhraseGuard(TOKENIZER, ["ab ab"])
    for _ in range(40):
        guard.push(0)
    assert len(guard.release()) >= 10
