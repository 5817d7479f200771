"""`epilogue write`: what goes to which stream, and that options reach the engine."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.material import BOOK, Run, interrupt
from epilogue.cli.write import opening_of
from epilogue.engine import Engine
from epilogue.text import Tokenizer

SHORT = ("--max-new-tokens", 12, "--seed", 5)


def read_texts(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> list[str]:
    """What the engine is given to read, as text."""
    texts: list[str] = []
    real = Engine.open_book

    def open_book(self: Engine, ids: list[int], **options: Any) -> Any:
        texts.append(tokenizer.decode(ids))
        return real(self, ids, **options)

    monkeypatch.setattr(Engine, "open_book", open_book)
    return texts


def test_story_to_stdout_and_talk_to_stderr(run: Run, tiny: Path, book: Path) -> None:
    done = run("write", book, "--model", tiny, *SHORT)
    assert done.code == 0
    assert done.out.endswith("\n")
    assert len(done.out) > 3
    title, model, note, closing = done.err.splitlines()
    assert title == "The Pier by A. Sea"
    assert model.startswith(f"{tiny}: 0.1 million parameters, 2 layers, ALiBi; float32 on cpu")
    assert "more than the 64 this model was trained on" in note
    for part in ("read ", " tok/s)", "wrote 12 at ", "s a token", "of all keys", "peak memory", "seed 5"):
        assert part in closing


def test_a_seed_repeats_the_text(run: Run, tiny: Path, book: Path) -> None:
    first, again = (run("write", book, "--model", tiny, *SHORT).out for _ in range(2))
    other = run("write", book, "--model", tiny, "--max-new-tokens", 12, "--seed", 4).out
    assert first == again != other


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
def test_every_storage_writes_and_says_what_it_holds(run: Run, tiny: Path, book: Path, storage: str) -> None:
    said = json.loads(run("write", book, "--model", tiny, *SHORT, "--kv-storage", storage, "--json").out)
    assert said["text"]
    assert said["kv_bytes"] > 0
    assert 0 < said["share_visited"] <= 1


def test_epsilon_0_writes_the_same_story(run: Run, tiny: Path) -> None:
    texts = [
        run("write", "-", "--model", tiny, *SHORT, "--epsilon", epsilon, stdin=BOOK.encode() * 10).out
        for epsilon in (0, 1e-6)
    ]
    assert texts[0] == texts[1] != ""


def test_json(run: Run, tiny: Path, book: Path, tokenizer: Tokenizer) -> None:
    plain = run("write", book, "--model", tiny, *SHORT)
    done = run("write", book, "--model", tiny, *SHORT, "--json")
    assert done.out.isascii()  # whole in any encoding
    said = json.loads(done.out)
    assert said["text"].rstrip("\n") == plain.out.rstrip("\n")
    assert said["seed"] == 5
    assert (said["title"], said["author"], said["prompt"]) == ("The Pier", "A. Sea", "EPILOGUE")
    assert said["tokens_read"] == len(tokenizer.encode(BOOK + "\n\nEPILOGUE\n\n"))
    assert (said["tokens_written"], said["ended_by"]) == (12, "length")
    assert said["peak_memory_bytes"] > 0
    assert min(said["read_s"], said["write_s"]) >= 0


def test_a_drawn_seed_is_told_and_repeats(run: Run, tiny: Path, book: Path) -> None:
    drawn = json.loads(run("write", book, "--model", tiny, "--max-new-tokens", 8, "--json").out)
    same = run("write", book, "--model", tiny, "--max-new-tokens", 8, "--seed", drawn["seed"], "--json").out
    assert json.loads(same)["text"] == drawn["text"]


def test_standard_input(run: Run, tiny: Path, book: Path) -> None:
    from_file = run("write", book, "--model", tiny, *SHORT)
    piped = run("write", "-", "--model", tiny, *SHORT, stdin=BOOK.encode())
    assert piped.out == from_file.out
    assert piped.err.startswith("The Pier by A. Sea")


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [("EPILOGUE", "EPILOGUE\n\n"), ("", ""), ("Once upon", "Once upon"), ("XII.", "XII.\n\n"), ("* * *", "* * *\n\n")],
)
def test_prompt(
    run: Run, tiny: Path, book: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, prompt: str, opening: str
) -> None:
    texts = read_texts(monkeypatch, tokenizer)
    assert run("write", book, "--model", tiny, "--prompt", prompt, "--max-new-tokens", 1).code == 0
    assert opening_of(prompt) == opening
    assert texts == [f"{BOOK}\n\n{opening}"]


def test_stop(run: Run, tiny: Path, book: Path) -> None:
    whole = json.loads(run("write", book, "--model", tiny, *SHORT, "--json").out)["text"]
    end = whole[len(whole) // 2 :][:2]
    said = json.loads(run("write", book, "--model", tiny, *SHORT, "--stop", "not there", "--stop", end, "--json").out)
    assert said["text"] == whole[: whole.index(end)]
    assert said["ended_by"] == "stop"


def test_a_model_that_says_nothing(run: Run, tiny: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "stream", lambda *_, **__: iter(()))
    done = run("write", book, "--model", tiny)
    assert (done.code, done.out) == (0, "")
    assert "wrote nothing" in done.err


def test_max_seq_len_silences_the_note(run: Run, tiny: Path, book: Path) -> None:
    done = run("write", book, "--model", tiny, "--max-new-tokens", 1, "--max-seq-len", 500)
    assert done.code == 0
    assert "note:" not in done.err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_while_writing_keeps_the_text(
    run: Run, tiny: Path, book: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    interrupt(monkeypatch, "writing", at=6)
    options = ("--json",) if as_json else ()
    done = run("write", book, "--model", tiny, *SHORT, *options)
    assert done.code == 130
    assert done.out.endswith("\n")
    assert done.out.strip()
    assert "seed 5" in done.err
    assert "Traceback" not in done.err
    if as_json:
        assert json.loads(done.out)["ended_by"] == "interrupt"


def test_ctrl_c_while_reading(run: Run, tiny: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "reading", at=1024)
    done = run("write", "-", "--model", tiny, *SHORT, stdin=BOOK.encode() * 20)
    assert (done.code, done.out) == (130, "")
    assert "stopped after 1,024 of" in done.err
    assert "nothing was written" in done.err


def test_ctrl_c_before_there_is_anything(run: Run, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("epilogue.cli.write.open_model", press)
    done = run("write", book)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err


def test_stdout_of_another_encoding(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_bytes = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(ascii_bytes, encoding="ascii"))
    monkeypatch.setattr("epilogue.cli.story.stream_text", lambda *_: iter(["“Was it?”", "\n"]))
    assert run("write", "-", "--model", tiny, stdin=BOOK.encode()).code == 0
    assert ascii_bytes.getvalue() == b"?Was it??\n"


def test_the_bundled_model(run: Run) -> None:
    done = run("write", "-", "--max-new-tokens", 3, "--seed", 1, stdin=BOOK.encode())
    assert done.code == 0
    assert done.out.strip()
    assert "epilogue-tiny, the bundled model" in done.err
