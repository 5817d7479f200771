"""Token shards: whole books as ids, each ended by the end-of-text id, in flat files that are mapped, not read.

A folder holds ``tokens-00000.bin`` and so on (little-endian uint16, uint32 for vocabularies past 65,536), the
``tokenizer.json`` that made them, and ``manifest.json``: format version, tokenizer fingerprint, SHA-256 of every file,
and for every document its place, tokens and UTF-8 bytes. Documents never cross files.
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epilogue.data.manifest import MANIFEST, Manifest, ShardDocument, ShardFile, read_manifest
from epilogue.data.publish import begin_folder, publish_folder
from epilogue.errors import CheckpointError, ShardError
from epilogue.text import Tokenizer

_TOKENIZER = "tokenizer.json"

Tokens = npt.NDArray[np.unsignedinteger[Any]]


def require_absent(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ShardError: ``folder`` exists.
    """
    if folder.exists():
        raise ShardError(f"{folder} exists already; remove it or choose another place")


class ShardWriter:
    """Writes a folder of shards beside its final place and moves it there when ``finish`` is called.

    Until then nothing stands at ``folder``; an interrupted run leaves ``folder.partial``, which the next one replaces.

    Args:
        folder: the final place.
        tokenizer: what makes the ids; saved with them.
        max_file_tokens: a file is ended before it exceeds this; a longer book gets a file of its own.

    Raises:
        ShardError: ``folder`` exists.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, max_file_tokens: int = 1 << 26) -> None:
        require_absent(folder)
        self.folder, self.tokenizer, self.max_file_tokens = folder, tokenizer, max_file_tokens
        self.dtype = np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")
        self._partial = begin_folder(folder)
        self._documents: list[ShardDocument] = []
        self._file_tokens: list[int] = []

    def add(self, ids: Iterable[int], *, id: str, title: str, num_bytes: int) -> None:
        """Append one book; the end-of-text id is added here."""
        tokens = np.asarray([*ids, self.tokenizer.eos_id], dtype=self.dtype)
        is_full = self._file_tokens and self._file_tokens[-1] + len(tokens) > self.max_file_tokens
        if is_full or not self._file_tokens:
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
        """Write tokenizer and manifest, and put the folder in its place once all of it is on the disk."""
        self.tokenizer.save(self._partial / _TOKENIZER)
        files = [
            ShardFile(name=_file_name(i), num_tokens=n, sha256=_sha256(self._partial / _file_name(i)))
            for i, n in enumerate(self._file_tokens)
        ]
        manifest = Manifest(
            dtype=self.dtype.name,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            files=files,
            documents=self._documents,
        )
        manifest.write(self._partial / MANIFEST)
        publish_folder(self._partial)


class Shards:
    """A folder of shards, opened for reading. Sizes are checked here; ``verify`` reads and hashes everything.

    Raises:
        ShardError: no folder of shards, another version, a damaged manifest, or a file missing or of the wrong size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest = read_manifest(self.folder / MANIFEST)
        self.documents = self._manifest.documents
        self._files = [self._map(file) for file in self._manifest.files]

    def _map(self, file: ShardFile) -> Tokens:
        dtype = np.dtype(self._manifest.dtype).newbyteorder("<")
        path = self.folder / file.name
        wanted = file.num_tokens * dtype.itemsize
        size = path.stat().st_size if path.is_file() else -1
        if size != wanted:
            came = "is missing" if size < 0 else f"has {size} bytes"
            raise ShardError(f"{path} {came}, wanted {wanted} bytes; prepare the shards again")
        return np.memmap(path, dtype=dtype, mode="r") if wanted else np.empty(0, dtype)

    @property
    def num_tokens(self) -> int:
        """Tokens of all books, each one's end-of-text included."""
        return sum(document.num_tokens for document in self.documents)

    @property
    def tokenizer_file(self) -> Path:
        """Where the tokenizer that made the shards lies."""
        return self.folder / _TOKENIZER

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards.

        Raises:
            ShardError: the tokenizer.json in the folder is missing, damaged or another one.
        """
        try:
            tokenizer = Tokenizer.from_file(self.tokenizer_file)
        except CheckpointError as error:
            raise ShardError(f"{self.tokenizer_file} cannot be used ({error}); prepare the shards again") from error
        if tokenizer.fingerprint != self._manifest.tokenizer_fingerprint:
            raise ShardError(f"{self.tokenizer_file} did not make these shards; prepare them again")
        return tokenizer

    def tokens(self, document: ShardDocument) -> Tokens:
        """The ids of a book, as a view of its mapped file."""
        return self._files[document.file][document.start : document.start + document.num_tokens]

    def verify(self) -> None:
        """Hash every file.

        Raises:
            ShardError: a file's content is not what the manifest says; the message names it.
        """
        for file in self._manifest.files:
            path = self.folder / file.name
            if _sha256(path) != file.sha256:
                raise ShardError(f"{path} is damaged (SHA-256 differs); prepare the shards again")
        _ = self.tokenizer


def _file_name(index: int) -> str:
    return f"tokens-{index:05d}.bin"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
