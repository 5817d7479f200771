"""JSON lines, plain or compressed: a reader that names the line that is no book, and a writer."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import zstandard

from epilogue.errors import BookError

JSON_LINES = (".jsonl", ".jsonl.zst", ".jsonl.gz")
_READ_BYTES = 1 << 20
_LEVEL = 3  # of Zstandard: texts shrink to 40 % at some 200 MB/s


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object of a .jsonl, .jsonl.zst or .jsonl.gz file with its line's number; empty lines are passed over.

    Raises:
        BookError: the file is damaged or cut off, or a line is no object with a text in ``text``.
    """
    with file.open("rb") as raw:
        for number, line in enumerate(_split_lines(_chunks(raw, file)), start=1):
            if line.strip():
                yield number, _fields(line, file, number)


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name: hidden, and no other process's, should one be left behind."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


class JsonLinesWriter:
    """Writes objects to a .jsonl.zst file, which stands at its place once it is whole.

    Used as a context manager; what an exception leaves is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, partial_path(path)
        self._out: Any = None

    def __enter__(self) -> "JsonLinesWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._out = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._partial.open("wb"))
        return self

    def write(self, entry: dict[str, Any]) -> None:
        """Append one object."""
        self._out.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink()


def _chunks(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    suffix = file.suffix.lower()
    if suffix == ".zst":
        return _unpacked(raw, file)
    return _gunzipped(raw, file) if suffix == ".gz" else iter(lambda: raw.read(_READ_BYTES), b"")


def _gunzipped(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(raw) as unpacked:
            yield from iter(lambda: unpacked.read(_READ_BYTES), b"")
    except (OSError, EOFError, zlib.error) as error:
        raise BookError(f"{file} is damaged ({error}); fetch it again") from error


def _unpacked(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    """The content of all Zstandard frames; the library's own reader takes a file that was cut off for whole."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    is_whole, data = False, raw.read(_READ_BYTES)
    while data:
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise BookError(f"{file} is damaged ({error}); fetch it again") from error
        is_whole, data = frame.eof, frame.unused_data or raw.read(_READ_BYTES)
        if is_whole:
            frame = zstandard.ZstdDecompressor().decompressobj()
    if not is_whole:
        raise BookError(f"{file} is cut off: its last Zstandard frame has no end; fetch it again")


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held = io.BytesIO()
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield held.getvalue() + line
            held = io.BytesIO()
        held.write(rest)
    yield held.getvalue()


def _fields(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(line.decode("utf-8-sig"))
        text = fields["text"]
        if not isinstance(text, str) or not text.strip():
            raise TypeError("it is empty" if isinstance(text, str) else f"it is a {type(text).__name__}")
        text.encode()  # an escaped half of a surrogate pair is JSON, and no text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = 'there is no "text"' if isinstance(error, KeyError) else error
        raise BookError(
            f'line {number} of {file} is no JSON object with a book as its "text" ({why}); mend it or leave it out'
        ) from error
    return fields
