"""Shards give back what was written, and damage of any kind is one sentence that names the file."""

import json
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epilogue.data import Shards, ShardWriter
from epilogue.errors import ShardError
from epilogue.text import Tokenizer, train_tokenizer


class FakeTokenizer:
    """Says it has so many entries; enough to write shards with."""

    eos_id = 0
    fingerprint = "none"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def save(self, path: Path) -> None:
        path.write_text("{}")


def write(folder: Path, tokenizer: Any, books: list[list[int]], *, max_file_tokens: int = 1 << 26) -> Shards:
    writer = ShardWriter(folder, tokenizer, max_file_tokens=max_file_tokens)
    for number, ids in enumerate(books):
        writer.add(ids, id=str(number), title=f"Book {number}", text=b"t" * len(ids))
    writer.finish()
    return Shards(folder)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    write(tmp_path / "shards", tokenizer, [[5, 6, 7], [8], [9, 10]], max_file_tokens=6)
    return tmp_path / "shards"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def edit_document(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Of the first document; the manifest is told the new size."""
    path = folder / "documents.jsonl"
    first, *rest = path.read_text().splitlines()
    document = json.loads(first)
    change(document)
    path.write_text("\n".join([json.dumps(document), *rest, ""]))
    edit(folder, lambda m: m["files"][-2].update(num_bytes=path.stat().st_size))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    books=st.lists(st.lists(st.integers(0, 279), max_size=30), min_size=1, max_size=8),
    max_file_tokens=st.integers(1, 60),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, books: list[list[int]], max_file_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "new" / "deep"
    shards = write(folder, tokenizer, books, max_file_tokens=max_file_tokens)
    shards.verify()
    assert [shards.tokens(d).tolist() for d in shards.documents] == [[*ids, tokenizer.eos_id] for ids in books]
    assert [(d.id, d.title, d.num_bytes) for d in shards.documents] == [
        (str(i), f"Book {i}", len(ids)) for i, ids in enumerate(books)
    ]
    assert shards.num_tokens == sum(len(ids) + 1 for ids in books)
    assert shards.tokenizer.fingerprint == tokenizer.fingerprint
    for file in folder.glob("tokens-*.bin"):
        assert file.stat().st_size // 2 <= max(max_file_tokens, max(map(len, books)) + 1)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_asks(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    last = vocab_size - 1
    shards = write(tmp_path / "s", FakeTokenizer(vocab_size), [[1, last]])
    tokens = shards.tokens(shards.documents[0])
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.tolist() == [1, last, 0]


def test_the_files_are_little_endian_on_any_machine(folder: Path, tokenizer: Tokenizer) -> None:
    assert (folder / "tokens-00000.bin").read_bytes() == bytes([5, 0, 6, 0, 7, 0, tokenizer.eos_id, 0, 8, 0, 0, 0])


def test_shards_of_no_book_can_be_opened(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert write(tmp_path / "none", tokenizer, []).num_tokens == 0


def test_nothing_is_overwritten(folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ShardError, match="exists already"):
        ShardWriter(folder, tokenizer)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no folder of shards.*epilogue prepare"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(version=1),
        lambda m: m.update(format="other"),
        lambda m: m.pop("version"),
    ],
)
def test_another_version_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, change)
    with pytest.raises(ShardError, match=r"manifest\.json is not of format epilogue-shards version 2"):
        Shards(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("num_documents"),
        lambda m: m.pop("dtype"),
        lambda m: m.update(surprise=1),
        lambda m: m.update(dtype="float16"),
        lambda m: m.update(dtype=16),
        lambda m: m.update(files=3),
        lambda m: m["files"].pop(0),
        lambda m: m["files"].pop(),
        lambda m: m["files"][0].update(name="../tokens-00000.bin"),
        lambda m: m["files"][0].update(name="..\\tokens-00000.bin"),
        lambda m: m["files"][0].update(name=""),
        lambda m: m["files"][0].update(num_bytes="12"),
        lambda m: m["files"][0].update(num_bytes=-1),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_true_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, change)
    with pytest.raises(ShardError, match=r"manifest\.json is damaged .*prepare the shards again"):
        Shards(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("start"),
        lambda d: d.update(surprise=1),
        lambda d: d.update(start=-1),
        lambda d: d.update(start=True),
        lambda d: d.update(file=7),
        lambda d: d.update(num_tokens=7),
    ],
)  # fmt: skip
def test_a_document_that_cannot_be_true_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_document(folder, change)
    with pytest.raises(ShardError, match=r"documents\.jsonl is damaged .*prepare the shards again"):
        Shards(folder)


def test_documents_that_are_missing_are_counted(folder: Path) -> None:
    edit(folder, lambda m: m.update(num_documents=4))
    with pytest.raises(ShardError, match=r"documents\.jsonl has 3 documents, wanted 4"):
        Shards(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"manifest\.json cannot be read"):
        Shards(folder)


def test_a_manifest_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match=r"manifest\.json is not of format"):
        Shards(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "tokens-00001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"tokens-00001\.bin has 5 bytes, wanted 6"):
        Shards(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "tokens-00000.bin").unlink()
    with pytest.raises(ShardError, match=r"tokens-00000\.bin is missing"):
        Shards(folder)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_verify_names_file_and_book_of_a_flipped_bit(folder: Path) -> None:
    flip(folder / "tokens-00000.bin", 8)
    with pytest.raises(ShardError, match=r"tokens-00000\.bin is damaged \(SHA-256 differs; in 'Book 1'\); prepare"):
        Shards(folder).verify()


def test_verify_names_every_file(folder: Path) -> None:
    flip(folder / "tokens-00000.bin", 0)
    flip(folder / "tokens-00001.bin", 0)
    flip(folder / "tokenizer.json", 0)
    with pytest.raises(
        ShardError, match=r"00000\.bin, .*00001\.bin, .*tokenizer\.json are damaged .*'Book 0', 'Book 2'"
    ):
        Shards(folder).verify()


def replace_tokenizer(folder: Path, content: str) -> None:
    path = folder / "tokenizer.json"
    path.write_text(content)
    described = {"num_bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    edit(folder, lambda m: m["files"][-1].update(described))


def test_another_tokenizer_is_refused(folder: Path) -> None:
    replace_tokenizer(folder, train_tokenizer(["a quite different text"], vocab_size=270).definition)
    shards = Shards(folder)
    with pytest.raises(ShardError, match=r"tokenizer\.json did not make these shards"):
        _ = shards.tokenizer
    with pytest.raises(ShardError, match=r"tokenizer\.json"):
        shards.verify()


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    replace_tokenizer(folder, "{}")
    with pytest.raises(ShardError, match=r"tokenizer\.json cannot be used"):
        _ = Shards(folder).tokenizer


@pytest.mark.parametrize("name", ["tokenizer.json", "documents.jsonl"])
def test_every_file_must_be_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ShardError, match=f"{name} is missing"):
        Shards(folder)


def test_a_copy_reads_the_same_folder(folder: Path) -> None:
    shards = pickle.loads(pickle.dumps(Shards(folder)))
    assert shards.tokens(shards.documents[0])[:3].tolist() == [5, 6, 7]
