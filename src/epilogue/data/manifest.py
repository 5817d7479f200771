"""What a folder of shards says of itself: its manifest, the index of its documents, and whether that can be true."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from epilogue.errors import ShardError

MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
TOKENIZER = "tokenizer.json"
_FORMAT = "epilogue-shards"
_VERSION = 2
_TOKEN_FILE = re.compile(r"tokens-\d{5,}\.bin")
_DTYPES = ("uint16", "uint32")

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class ShardDocument:
    """Where one book lies: its tokens, the end-of-text id included, in one file. A line of documents.jsonl."""

    id: str
    title: str
    file: int
    """Number of its file of tokens."""
    start: int
    """Tokens before it in the file."""
    num_tokens: int
    num_bytes: int
    """UTF-8 bytes of the text."""
    text_xxh3: str
    """XXH3 of 64 bits, in hexadecimal, of the UTF-8 text: what it was made of."""
    tokens_xxh3: str
    """The same of its bytes in the file: whether it is still that."""

    def line(self) -> str:
        """As it stands in documents.jsonl."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of a folder of shards."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards says of itself; every file but the manifest is in its list."""

    dtype: str
    """uint16 or uint32, little-endian in the files."""
    tokenizer_fingerprint: str
    pipeline: str
    """Name and version of what turned sources into these documents."""
    num_documents: int
    files: list[ShardFile]

    def token_files(self) -> list[ShardFile]:
        """Those that hold tokens, in the order that documents count them in."""
        return [file for file in self.files if _TOKEN_FILE.fullmatch(file.name)]

    def write(self, path: Path) -> None:
        """Save as JSON."""
        content = {"format": _FORMAT, "version": _VERSION} | asdict(self)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def token_file_name(number: int) -> str:
    """tokens-00000.bin and so on."""
    return f"tokens-{number:05d}.bin"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and check that it does not contradict itself.

    Raises:
        ShardError: no such file, no JSON, another version, or a field missing or of the wrong kind.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(
            f"{path.parent} is no folder of shards: it has no {MANIFEST}; run `epilogue prepare`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} cannot be read ({error}); prepare the shards again") from error
    came = (raw.pop("format", None), raw.pop("version", None)) if isinstance(raw, dict) else None
    if came != (_FORMAT, _VERSION):
        raise ShardError(f"{path} is not of format {_FORMAT} version {_VERSION}; prepare the shards again")
    try:
        raw["files"] = [_record(ShardFile, entry) for entry in raw["files"]]
        manifest = _record(Manifest, raw)
        _check(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); prepare the shards again") from error
    return manifest


def read_documents(path: Path, file_tokens: Sequence[int]) -> list[ShardDocument]:
    """The index of the documents, each of which must lie inside its file.

    Args:
        path: of documents.jsonl.
        file_tokens: tokens of every file.

    Raises:
        ShardError: a line is no document, or one lies outside its file.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        documents = [parse_document(line) for line in lines[:-1]]
        for document in documents:
            size = file_tokens[document.file] if document.file < len(file_tokens) else 0
            if document.start + document.num_tokens > size:
                raise ValueError(f"the book {document.id!r} lies outside its file")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ShardError(f"{path} is damaged ({error}); prepare the shards again") from error
    return documents


def parse_document(line: str) -> ShardDocument:
    """A line of documents.jsonl.

    Raises:
        ValueError, TypeError: it is none.
    """
    return _record(ShardDocument, json.loads(line))


def _record(kind: type[Record], raw: Any) -> Record:
    """A dataclass from a JSON object that has its fields and no others, each of its kind."""
    record = kind(**raw)
    for field in fields(kind):  # type: ignore[arg-type]
        value, wanted = getattr(record, field.name), getattr(field.type, "__origin__", field.type)
        if type(value) is not wanted or (wanted is int and value < 0):
            raise ValueError(f"{kind.__name__}.{field.name} is {value!r}")
    return record


def _check(manifest: Manifest) -> None:
    if manifest.dtype not in _DTYPES:
        raise ValueError(f"dtype is {manifest.dtype!r}")
    names = [file.name for file in manifest.files]
    token_files = [file.name for file in manifest.token_files()]
    expected = [*map(token_file_name, range(len(token_files))), DOCUMENTS, TOKENIZER]
    if names != expected:
        raise ValueError(f"the files are called {names}")
