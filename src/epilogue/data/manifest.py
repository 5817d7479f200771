"""The manifest of a folder of shards: what its files hold, where each book lies, and whether that can be true."""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from epilogue.errors import ShardError

MANIFEST = "manifest.json"
_FORMAT = "epilogue-shards"
_VERSION = 1
_FILE_NAME = re.compile(r"tokens-\d{5,}\.bin")
_DTYPES = ("uint16", "uint32")

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class ShardDocument:
    """Where one book lies: its tokens, the end-of-text id included, in one file."""

    id: str
    title: str
    file: int
    """Place of its file in the manifest's list."""
    start: int
    """Tokens before it in the file."""
    num_tokens: int
    num_bytes: int
    """UTF-8 bytes of the text."""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of token ids."""

    name: str
    num_tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards says of itself."""

    dtype: str
    """uint16 or uint32, little-endian in the files."""
    tokenizer_fingerprint: str
    files: list[ShardFile]
    documents: list[ShardDocument]

    def write(self, path: Path) -> None:
        """Save as JSON."""
        content = {"format": _FORMAT, "version": _VERSION} | asdict(self)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and check that it does not contradict itself.

    Raises:
        ShardError: no such file, no JSON, another version, a field missing or of the wrong kind, or a book outside its
            file.
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
        raw["documents"] = [_record(ShardDocument, entry) for entry in raw["documents"]]
        manifest = _record(Manifest, raw)
        _check(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); prepare the shards again") from error
    return manifest


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
    for file in manifest.files:
        if not _FILE_NAME.fullmatch(file.name):
            raise ValueError(f"a file is called {file.name!r}")
    for document in manifest.documents:
        size = manifest.files[document.file].num_tokens if document.file < len(manifest.files) else 0
        if document.start + document.num_tokens > size:
            raise ValueError(f"the book {document.id!r} lies outside its file")
