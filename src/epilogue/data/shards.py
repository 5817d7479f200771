"""Token shards: whole books as ids, each ended by the end-of-text id, in flat files that are mapped, not read.

A folder holds ``tokens-00000.bin`` and so on (little-endian uint16, uint32 for vocabularies past 65,536), the
``tokenizer.json`` that made them, and ``manifest.json``, written last: format version, tokenizer fingerprint, SHA-256 of
every file, and for every document its place, tokens and UTF-8 bytes. Documents never cross files.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epilogue.errors import ShardError
from epilogue.text import Tokenizer

_FORMAT = "epilogue-shards"
_VERSION = 1
_MANIFEST = "manifest.json"

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, kw_only=True)
class ShardDocument:
    """Where one book lies: its tokens, the end-of-text id included, in one file."""

    id: str
    title: str
    file: int
    start: int
    num_tokens: int
    num_bytes: int


class ShardWriter:
    """Writes a folder of shards beside its final place and moves it there when ``finish`` is called.

    Until then nothing stands at ``folder``; an interrupted run leaves ``folder.partial``, which the next one replaces.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, max_file_tokens: int = 1 << 26) -> None:
        if folder.exists():
            raise ShardError(f"{folder} exists already; remove it or choose another place")
        self.folder, self.tokenizer, self.max_file_tokens = folder, tokenizer, max_file_tokens
        self.dtype = np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")
        self._partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._documents: list[ShardDocument] = []
        self._file_tokens: list[int] = []

    def add(self, ids: Iterable[int], *, id: str, title: str, num_bytes: int) -> None:
        """Append one book; the end-of-text id is added here."""
        tokens = np.asarray([*ids, self.tokenizer.eos_id], dtype=self.dtype)
        full = self._file_tokens and self._file_tokens[-1] + len(tokens) > self.max_file_tokens
        if full or not self._file_tokens:
            self._file_tokens.append(0)
        file = len(self._file_tokens) - 1
        with (self._partial / _file_name(file)).open("ab") as out:
            out.write(tokens.tobytes())
        self._documents.append(
            ShardDocument(
                id=id, title=title, file=file, start=self._file_tokens[-1], num_tokens=len(tokens), num_bytes=num_bytes
            )
        )
        self._file_tokens[-1] += len(tokens)

    def finish(self) -> None:
        """Write tokenizer and manifest, and put the folder in its place."""
        self.tokenizer.save(self._partial / "tokenizer.json")
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "dtype": self.dtype.name,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "files": [
                {"name": _file_name(i), "num_tokens": n, "sha256": _sha256(self._partial / _file_name(i))}
                for i, n in enumerate(self._file_tokens)
            ],
            "documents": [asdict(document) for document in self._documents],
        }
        (self._partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        self._partial.rename(self.folder)


class Shards:
    """A folder of shards, opened for reading. Sizes are checked here; ``verify`` reads and hashes everything.

    Raises:
        ShardError: no folder of shards, another version, or a file missing or of the wrong size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest = _read_manifest(self.folder)
        self.documents = [ShardDocument(**fields) for fields in self._manifest["documents"]]
        self._files = [self._map(fields) for fields in self._manifest["files"]]

    def _map(self, fields: dict[str, Any]) -> Tokens:
        dtype = np.dtype(self._manifest["dtype"]).newbyteorder("<")
        path = self.folder / fields["name"]
        wanted = fields["num_tokens"] * dtype.itemsize
        size = path.stat().st_size if path.is_file() else -1
        if size != wanted:
            came = "is missing" if size < 0 else f"has {size} bytes"
            raise ShardError(f"{path} {came}, wanted {wanted} bytes; prepare the shards again")
        return np.memmap(path, dtype=dtype, mode="r")

    @property
    def num_tokens(self) -> int:
        """Tokens of all books, each one's end-of-text included."""
        return sum(document.num_tokens for document in self.documents)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards.

        Raises:
            ShardError: the tokenizer.json in the folder is another one.
        """
        tokenizer = Tokenizer.from_file(self.folder)
        if tokenizer.fingerprint != self._manifest["tokenizer_fingerprint"]:
            raise ShardError(f"{self.folder}/tokenizer.json did not make these shards; prepare them again")
        return tokenizer

    def tokens(self, document: ShardDocument) -> Tokens:
        """The ids of a book, as a view of its mapped file."""
        return self._files[document.file][document.start : document.start + document.num_tokens]

    def verify(self) -> None:
        """Hash every file.

        Raises:
            ShardError: a file's content is not what the manifest says; the message names it.
        """
        for fields in self._manifest["files"]:
            if _sha256(self.folder / fields["name"]) != fields["sha256"]:
                raise ShardError(
                    f"{self.folder / fields['name']} is damaged (SHA-256 differs); prepare the shards again"
                )


def _file_name(index: int) -> str:
    return f"tokens-{index:05d}.bin"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(f"{folder} is no folder of shards: it has no {_MANIFEST}; run `epilogue prepare`") from error
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read ({error}); prepare the shards again") from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (_FORMAT, _VERSION):
        raise ShardError(f"{path} is not of format {_FORMAT} version {_VERSION}; prepare the shards again")
    if any(Path(fields["name"]).name != fields["name"] for fields in manifest["files"]):
        raise ShardError(f"{path} names a file outside its folder; prepare the shards again")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
