"""Token shards: whole books as ids, each ended by the end-of-text id, in flat files that are mapped, not read.

A folder holds ``tokens-00000.bin`` and so on (little-endian uint16, uint32 for vocabularies past 65,536),
``documents.jsonl`` (a line a book: where it lies, its size, checksums), the ``tokenizer.json`` that made them, and
``manifest.json``: format version, tokenizer fingerprint, pipeline, and the SHA-256 of every file. Documents never cross
files. ``data.writing`` writes such folders.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from epilogue.data.manifest import DOCUMENTS, MANIFEST, TOKENIZER, ShardDocument, read_documents, read_manifest
from epilogue.errors import CheckpointError, ShardError
from epilogue.text import Tokenizer

Tokens = npt.NDArray[np.unsignedinteger[Any]]
_NAMED_BOOKS = 3


class Shards:
    """A folder of shards, opened for reading. May be pickled; the copy opens the folder anew.

    Sizes of all files and the index of the documents are checked here; ``verify`` reads and hashes everything.

    Raises:
        ShardError: no folder of shards, another version, a damaged manifest or index, or a file missing or of the wrong
            size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder / MANIFEST)
        for file in self.manifest.files:
            _require_size(self.folder / file.name, file.num_bytes)
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self._files = [_map(self.folder / file.name, dtype, file.num_bytes) for file in self.manifest.token_files()]
        self.documents = read_documents(self.folder / DOCUMENTS, [len(tokens) for tokens in self._files])
        if len(self.documents) != self.manifest.num_documents:
            raise ShardError(
                f"{self.folder / DOCUMENTS} has {len(self.documents)} documents, wanted {self.manifest.num_documents}; "
                "prepare the shards again"
            )

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path]]:
        return Shards, (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Tokens of all books, each one's end-of-text included."""
        return sum(document.num_tokens for document in self.documents)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the texts over tokens, the mean of all books; 0 without any."""
        return sum(document.num_bytes for document in self.documents) / max(1, self.num_tokens)

    @property
    def tokenizer_file(self) -> Path:
        """Where the tokenizer that made the shards lies."""
        return self.folder / TOKENIZER

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
        if tokenizer.fingerprint != self.manifest.tokenizer_fingerprint:
            raise ShardError(f"{self.tokenizer_file} did not make these shards; prepare them again")
        return tokenizer

    def tokens(self, document: ShardDocument) -> Tokens:
        """The ids of a book, as a view of its mapped file."""
        return self._files[document.file][document.start : document.start + document.num_tokens]

    def verify(self) -> None:
        """Hash every file.

        Raises:
            ShardError: the content of files is not what the manifest says; the message names them, and books in them.
        """
        paths = [self.folder / f.name for f in self.manifest.files if file_sha256(self.folder / f.name) != f.sha256]
        if paths:
            books = self._damaged_books()
            named = ", ".join(repr(d.title or d.id) for d in books[:_NAMED_BOOKS])
            more = f" and {len(books) - _NAMED_BOOKS} more" if len(books) > _NAMED_BOOKS else ""
            raise ShardError(
                f"{', '.join(map(str, paths))} {'is' if len(paths) == 1 else 'are'} damaged (SHA-256 differs"
                f"{f'; in {named}{more}' if books else ''}); prepare the shards again"
            )
        _ = self.tokenizer

    def _damaged_books(self) -> list[ShardDocument]:
        return [d for d in self.documents if xxhash.xxh3_64_hexdigest(self.tokens(d).tobytes()) != d.tokens_xxh3]


def file_sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_size(path: Path, wanted: int) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size != wanted:
        came = "is missing" if size < 0 else f"has {size} bytes"
        raise ShardError(f"{path} {came}, wanted {wanted} bytes; prepare the shards again")


def _map(path: Path, dtype: np.dtype[Any], num_bytes: int) -> Tokens:
    return np.memmap(path, dtype=dtype, mode="r") if num_bytes else np.empty(0, dtype)
