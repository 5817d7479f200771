"""A run that ends anywhere is gone on with, and any number of workers and interruptions gives the same bytes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epilogue.data import Document, Shards, ShardWriter, prepare_shards, write_shards
from epilogue.data import prepare as preparing
from epilogue.errors import BookError
from epilogue.text import Tokenizer, encode_in_order, train_tokenizer

TEXT = "The rain came down on the harbour, and the rain went on all night. "


def books(num_books: int, *, changed: int | None = None) -> list[Document]:
    """The changed one is as long as it was, and has its name."""
    texts = [TEXT * (1 + i % 3) + ("fall" if i == changed else "rain") for i in range(num_books)]
    return [Document(id=str(i), title=f"Book {i}", author="", text=text) for i, text in enumerate(texts)]


def save(path: Path, documents: list[Document]) -> Path:
    path.write_text("".join(json.dumps({"id": d.id, "title": d.title, "text": d.text}) + "\n" for d in documents))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, documents: list[Document], tokenizer: Tokenizer, *, max_file_tokens: int = 60) -> Shards:
    return write_shards(documents, ShardWriter(folder, tokenizer, max_file_tokens=max_file_tokens))


def write_and_die(folder: Path, documents: list[Document], tokenizer: Tokenizer, *, at: int) -> None:
    def until() -> Iterator[Document]:
        yield from documents[:at]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(until(), ShardWriter(folder, tokenizer, max_file_tokens=60))
    assert not folder.exists()


@pytest.fixture
def whole(tmp_path: Path, tokenizer: Tokenizer) -> dict[str, bytes]:
    return content(write(tmp_path / "whole", books(9), tokenizer).folder)


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_an_interrupted_run_is_gone_on_with(
    tmp_path: Path, tokenizer: Tokenizer, whole: dict[str, bytes], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_and_die(tmp_path / "s", books(9), tokenizer, at=at)
    encoded: list[str] = []
    real = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: encoded.append(text) or real(self, text))
    write(tmp_path / "s", books(9), tokenizer).verify()
    assert len(encoded) == 9 - at
    assert content(tmp_path / "s") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    at=st.integers(1, 9), name=st.sampled_from(["tokens", "documents"]), cut=st.integers(0, 400), flips=st.booleans()
)
def test_what_a_crash_damaged_is_made_anew(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    whole: dict[str, bytes],
    at: int,
    name: str,
    cut: int,
    flips: bool,
) -> None:
    folder = tmp_path_factory.mktemp("crash") / "s"
    write_and_die(folder, books(9), tokenizer, at=at)
    partial = folder.with_name("s.partial")
    path = sorted(partial.glob(f"{name}*"))[-1]
    data = bytearray(path.read_bytes())
    if flips:
        data[-1 - cut % len(data)] ^= 8
    else:
        del data[max(0, len(data) - cut) :]
    path.write_bytes(data)
    assert content(write(folder, books(9), tokenizer).folder) == whole


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_a_book_that_changed_is_made_anew_and_all_behind_it(tmp_path: Path, tokenizer: Tokenizer, changed: int) -> None:
    write_and_die(tmp_path / "s", books(9, changed=changed), tokenizer, at=6)
    after = write(tmp_path / "s", books(9), tokenizer)
    assert content(after.folder) == content(write(tmp_path / "whole", books(9), tokenizer).folder)


def test_books_that_are_gone_are_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_and_die(tmp_path / "s", books(9), tokenizer, at=9)
    fewer = write(tmp_path / "s", books(2), tokenizer)
    assert content(fewer.folder) == content(write(tmp_path / "whole", books(2), tokenizer).folder)


def test_another_tokenizer_begins_anew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_and_die(tmp_path / "s", books(9), tokenizer, at=5)
    other = train_tokenizer([TEXT * 2], vocab_size=270)
    shards = write(tmp_path / "s", books(9), other)
    assert shards.tokenizer.fingerprint == other.fingerprint
    assert content(shards.folder) == content(write(tmp_path / "whole", books(9), other).folder)


def test_a_vocabulary_is_not_learned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "books.jsonl", books(9))
    whole = content(prepare_shards([source], tmp_path / "whole", vocab_size=275).folder)

    def stop(title: str, num_tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_shards([source], tmp_path / "s", vocab_size=275, on_book=stop)
    with monkeypatch.context() as patch:
        patch.delattr(preparing, "train_tokenizer")
        assert content(prepare_shards([source], tmp_path / "s", vocab_size=275).folder) == whole
    with pytest.raises(KeyboardInterrupt):
        prepare_shards([source], tmp_path / "t", vocab_size=275, on_book=stop)
    save(source, books(9, changed=8))
    changed = content(prepare_shards([source], tmp_path / "t", vocab_size=275).folder)
    assert changed == content(prepare_shards([source], tmp_path / "new", vocab_size=275).folder) != whole


def test_two_workers_write_the_same_bytes_even_when_killed(
    tmp_path: Path, tokenizer: Tokenizer, whole: dict[str, bytes]
) -> None:
    """The whole program is killed amid its work, then one worker ends what two began."""
    source = save(tmp_path / "books.jsonl", books(9))
    tokenizer.save(tmp_path / "tokenizer.json")
    program = f"""
if __name__ == "__main__":  # workers import this file too
    import os, signal
    from pathlib import Path
    from epilogue.data import ShardWriter, iterate_documents, write_shards
    from epilogue.text import Tokenizer

    tokenizer = Tokenizer.from_file({str(tmp_path / "tokenizer.json")!r})
    for name, last in (("two", 10**9), ("killed", 5)):
        num_books = 0
        def on_book(title, num_tokens):
            global num_books
            num_books += 1
            if num_books == last:
                os.kill(os.getpid(), signal.SIGKILL)
        writer = ShardWriter(Path({str(tmp_path)!r}) / name, tokenizer, max_file_tokens=60)
        write_shards(iterate_documents([{str(source)!r}]), writer, num_workers=2, on_book=on_book)
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert content(tmp_path / "two") == whole
    assert (tmp_path / "killed.partial").is_dir()
    assert content(write(tmp_path / "killed", books(9), tokenizer).folder) == whole


def test_a_title_may_hold_anything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    title = "Line\nand \u2028 line, \ud83d, “quoted” ☂"
    document = Document(id="\udc00", title=title, author="", text=TEXT)
    write_and_die(tmp_path / "s", [document], tokenizer, at=1)
    [found] = write(tmp_path / "s", [document], tokenizer).documents
    assert (found.id, found.title) == ("\udc00", title)


def test_no_document_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(BookError, match="there is no book"):
        write(tmp_path / "s", [], tokenizer)


def test_no_worker_is_a_wrong_call(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(encode_in_order([(0, TEXT)], tokenizer, num_workers=0))
