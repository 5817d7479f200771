"""`epilogue read`, `epilogue states`, and `epilogue write` on a book that was read before."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.material import PARAGRAPH, Run, interrupt
from epilogue.engine import book_state

SHORT = ("--max-new-tokens", 8, "--seed", 5)


@pytest.fixture
def novel(tmp_path: Path) -> Path:
    """Long enough to be kept: some 2,900 tokens."""
    path = tmp_path / "The Long Pier.txt"
    path.write_text("\n\n".join(f"{PARAGRAPH} {number}." for number in range(100)), encoding="utf-8")
    return path


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPILOGUE_STATES", str(tmp_path / "kept"))
    return tmp_path / "kept"


def say(run: Run, *arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_book_is_read_once(run: Run, tiny: Path, novel: Path, states: Path) -> None:
    write = ("write", novel, "--model", tiny, *SHORT)
    never = run(*write, "--no-keep")
    assert not states.exists()
    first, again = run(*write), say(run, *write)
    assert "for the next time (" in first.err
    assert first.out == never.out
    assert again["text"].rstrip("\n") == never.out.rstrip("\n")
    assert again["tokens_read"] == 0
    assert again["tokens_opened"] > 2048
    third = run(*write)
    assert third.out == never.out
    assert "opened in " in third.err
    assert "nothing had to be read" in third.err
    assert "for the next time" not in third.err


def test_read_then_write_then_edit(run: Run, tiny: Path, novel: Path, states: Path) -> None:
    said = say(run, "read", novel, "--model", tiny)
    assert said["tokens"] == said["tokens_known"] == said["tokens_read"] > 2500
    assert Path(said["path"]).parent == states
    assert say(run, "read", novel, "--model", tiny)["tokens_read"] == 0
    assert say(run, "write", novel, "--model", tiny, *SHORT)["tokens_read"] < 30
    novel.write_text(novel.read_text().replace(" 95.", " ninety-five."))
    edited = run("write", novel, "--model", tiny, *SHORT)
    assert "read the last " in edited.err
    elsewhere = run("write", novel, "--model", tiny, *SHORT, "--states", states / "other")
    assert edited.out == elsewhere.out
    assert [one["title"] for one in say(run, "states", "list")] == ["The Long Pier"]


def test_a_short_book_is_not_worth_keeping(run: Run, tiny: Path, book: Path, states: Path) -> None:
    assert run("write", book, "--model", tiny, *SHORT).code == 0
    assert not states.exists()
    assert say(run, "read", book, "--model", tiny)["bytes"] > 0


def test_list_remove_and_clear(run: Run, tiny: Path, novel: Path, book: Path, states: Path) -> None:
    assert say(run, "states", "list") == []
    assert "0 kept, " in run("states", "list").err
    for one in (novel, book):
        assert run("read", one, "--model", tiny, "--kv-storage", "int8").code == 0
    listed = say(run, "states", "list")
    assert [(one["title"], one["kv_storage"], one["problem"]) for one in listed] == [
        ("The Pier", "int8", None),
        ("The Long Pier", "int8", None),
    ]
    table = run("states", "list")
    assert listed[0]["id"][:8] in table.out
    assert "2 kept, " in table.err
    assert run("states").out == table.out, "what `epilogue write` names is a command"
    wrong = run("states", "remove", "no-such-id")
    assert "0 book states in" in wrong.complaint
    gone = run("states", "remove", listed[0]["id"][:8])
    assert gone.out.startswith(f"removed {listed[0]['id']} (The Pier, ")
    assert len(say(run, "states", "list")) == 1
    assert run("states", "clear").out.startswith("removed 1 kept books, ")
    assert list(states.iterdir()) == []


def test_ctrl_c_while_reading_keeps_what_was_read(
    run: Run, tiny: Path, novel: Path, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "reading", at=2048)
        done = run("read", novel, "--model", tiny)
    assert done.code == 130
    assert "2,048 of " in done.err
    assert "the same command goes on from there" in done.err
    said = say(run, "read", novel, "--model", tiny)
    assert said["tokens_read"] == said["tokens"] - 2048
    assert len(say(run, "states", "list")) == 1


def test_a_damaged_state_is_named_and_read_again(run: Run, tiny: Path, novel: Path, states: Path) -> None:
    never = run("write", novel, "--model", tiny, *SHORT, "--no-keep").out
    for place in (20, -100):
        assert run("read", novel, "--model", tiny).code == 0
        (path,) = states.iterdir()
        raw = bytearray(path.read_bytes())
        raw[place] ^= 1
        path.write_bytes(raw)
        done = run("write", novel, "--model", tiny, *SHORT)
        assert (done.code, done.out) == (0, never)
        assert f"the book state {path} is damaged" in done.err
        assert run("states", "clear").code == 0


def test_a_full_disk_is_told_and_the_story_written(
    run: Run, tiny: Path, novel: Path, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(book_state, "_write", full)
    done = run("write", novel, "--model", tiny, *SHORT)
    assert done.code == 0
    assert done.out.strip()
    assert "what was read is not kept: the book state " in done.err
    assert list(states.iterdir()) == []


def test_a_limit(run: Run, tiny: Path, novel: Path, states: Path) -> None:
    done = run("write", novel, "--model", tiny, *SHORT, "--states-gib", "0")
    assert done.code == 0
    assert "all states together may take 0.00; raise the limit" in done.err
