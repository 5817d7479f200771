"""The page on a terminal and elsewhere, and what is seen of long work."""

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from epilogue.cli import progress
from epilogue.cli.page import Page
from epilogue.cli.progress import Watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(pieces: list[str], out: io.StringIO, columns: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        page = Page()
        for piece in pieces:
            page.write(piece)
        page.close()
    return out.getvalue()


def test_lines_end_between_words() -> None:
    shown = show(["The wi", "nd went round", " to the north."], Terminal(), 14)
    assert shown == "The wind went\nround to the\nnorth.\n"


def test_paragraphs_and_verse_stay() -> None:
    assert show(["One.\n", "\nTwo\n  three"], Terminal(), 40) == "One.\n\nTwo\n  three\n"


def test_a_word_longer_than_the_line() -> None:
    assert show(["no Taumatawhakatangi no"], Terminal(), 9) == "no\nTaumatawhakatangi\nno\n"


def test_wide_characters_take_two_columns() -> None:
    assert show(["海海 海海"], Terminal(), 8) == "海海\n海海\n"


def test_a_terminal_is_not_commanded() -> None:
    assert show(["a\x1b[2Jb\x07 c\x9b"], Terminal(), 40) == "a\ufffd[2Jb\ufffd c\ufffd\n"


def test_a_word_waits_no_longer_than_its_end() -> None:
    out = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        page = Page()
        page.write("one two")
        assert out.getvalue() == "one"
        page.write(" ")
        assert out.getvalue() == "one two"


def test_nothing_stays_nothing() -> None:
    assert show([], Terminal(), 40) == show([], io.StringIO(), 40) == ""


texts = st.lists(st.text(st.sampled_from("ab é海\n"), max_size=9), max_size=9)


@given(texts, st.integers(2, 30))
def test_wrapping_changes_white_space_alone(pieces: list[str], columns: int) -> None:
    whole = "".join(pieces)
    shown = show(pieces, Terminal(), columns)
    assert shown.split() == whole.split()
    assert shown == show(list(whole), Terminal(), columns)


@given(texts)
def test_a_file_gets_the_text_as_it_is(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert show(pieces, io.StringIO(), 5) == whole + ("" if whole.endswith("\n") or not whole else "\n")


def watched(monkeypatch: pytest.MonkeyPatch, *, seconds: list[float], **options: bool) -> str:
    """What a log says of a work of 100 tokens, ten at a time, when the clock shows these seconds."""
    clock = iter(seconds)
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Watch(Console(file=out, highlight=False), "reading", unit="tokens", total=100, **options) as watch:
        for i in range(1, len(seconds)):
            watch.update(10 * i, "3 tok/s")
    return out.getvalue()


def test_a_log_hears_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    said = watched(monkeypatch, seconds=[0, 4, 8, 12, 16, 20, 24])
    assert said.splitlines() == [
        "reading: 30 of 100 tokens, 3 tok/s, about 28 s left",
        "reading: 60 of 100 tokens, 3 tok/s, about 16 s left",
    ]


def test_short_work_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, seconds=[0, 4, 8]) == ""
    assert watched(monkeypatch, seconds=[0, 40, 80], is_shown=False) == ""


def test_a_terminal_sees_a_bar() -> None:
    out = Terminal()
    with Watch(Console(file=out, force_terminal=True, width=80), "reading", unit="tokens", total=10) as watch:
        watch.update(5, "3 tok/s")
    assert "5 of 10 tokens, 3 tok/s" in out.getvalue()
