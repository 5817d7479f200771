"""Iterate the books of a corpus: JSON lines (plain or Zstandard), single book files, and folders of either."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from epilogue.errors import BookError
from epilogue.text import read_book

_LINES = (".jsonl", ".jsonl.zst")
_BOOKS = (".txt", ".md", ".markdown", ".html", ".htm", ".xhtml", ".epub")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Document:
    """One whole book on its way into a shard."""

    id: str
    title: str
    author: str
    text: str


def iterate_documents(sources: Sequence[str | Path]) -> Iterator[Document]:
    """Every book of the given files and folders, in the order given and sorted by name within a folder.

    A line of a .jsonl file is an object with ``text`` and, by choice, ``id``, ``title`` and ``author``; empty lines
    and, in folders, hidden files are passed over.

    Raises:
        BookError: a source is missing or damaged, a line is no such object, or a book cannot be read.
    """
    for source in sources:
        for file in _files(Path(source)):
            if file.name.lower().endswith(_LINES):
                yield from _documents_of_lines(file)
            else:
                book = read_book(file)
                yield Document(id=file.stem, title=book.title or "", author=book.author or "", text=book.text)


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise BookError(f"there is no {source}; give .jsonl, .jsonl.zst or book files, or folders of them")
    if not source.is_dir():
        return [source]
    found = sorted(path for path in source.rglob("*") if path.is_file() and _is_source(path.relative_to(source)))
    if not found:
        raise BookError(f"the folder {source} holds no {', '.join(_LINES + _BOOKS)} file; choose another")
    return found


def _is_source(path: Path) -> bool:
    return path.name.lower().endswith(_LINES + _BOOKS) and not any(part.startswith(".") for part in path.parts)


def _documents_of_lines(file: Path) -> Iterator[Document]:
    with file.open("rb") as raw:
        chunks = _unpacked(raw, file) if file.suffix.lower() == ".zst" else iter(lambda: raw.read(_READ_BYTES), b"")
        for number, line in enumerate(_split_lines(chunks), start=1):
            if line.strip():
                yield _document(line, file, number)


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


def _document(line: bytes, file: Path, number: int) -> Document:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
        text = fields["text"]
        if not isinstance(text, str) or not text.strip():
            raise TypeError("it is empty" if isinstance(text, str) else f"it is a {type(text).__name__}")
        text.encode()  # an escaped half of a surrogate pair is JSON, and no text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = 'there is no "text"' if isinstance(error, KeyError) else error
        raise BookError(
            f'line {number} of {file} is no JSON object with a book as its "text" ({why}); mend it or leave it out'
        ) from error
    named = {name: str(fields.get(name) or "") for name in ("id", "title", "author")}
    return Document(text=text, **(named | {"id": named["id"] or f"{file.name}:{number}"}))
