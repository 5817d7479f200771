"""Iterate the books of a corpus: JSON lines (plain or Zstandard), single book files, and folders of either."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from epilogue.errors import BookError
from epilogue.text import read_book

_LINES = (".jsonl", ".jsonl.zst")
_BOOKS = (".txt", ".md", ".html", ".htm", ".xhtml", ".epub")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One whole book on its way into a shard."""

    id: str
    title: str
    author: str
    text: str


def iterate_documents(sources: Sequence[str | Path]) -> Iterator[Document]:
    """Every book of the given files and folders, in the order given and sorted by name within a folder.

    A line of a .jsonl file is an object with ``text`` and, by choice, ``id``, ``title`` and ``author``.

    Raises:
        BookError: a source is missing, a line is no such object, or a book cannot be read.
    """
    for source in sources:
        for file in _files(Path(source)):
            if file.name.endswith(_LINES):
                yield from _lines(file)
            else:
                book = read_book(file)
                yield Document(id=file.stem, title=book.title or "", author=book.author or "", text=book.text)


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise BookError(f"there is no {source}; give .jsonl, .jsonl.zst or book files, or folders of them")
    if source.is_file():
        return [source]
    found = sorted(p for p in source.rglob("*") if p.is_file() and p.name.endswith(_LINES + _BOOKS))
    if not found:
        raise BookError(f"the folder {source} holds no {', '.join(_LINES + _BOOKS)} file")
    return found


def _lines(file: Path) -> Iterator[Document]:
    with file.open("rb") as raw:
        stream: Any = zstandard.ZstdDecompressor().stream_reader(raw) if file.suffix == ".zst" else raw
        try:
            for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
                yield _document(line, f"{file.name}:{number}")
        except (zstandard.ZstdError, UnicodeDecodeError) as error:
            raise BookError(f"{file} is damaged ({error}); fetch it again") from error


def _document(line: str, where: str) -> Document:
    try:
        fields = json.loads(line)
        text = fields["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BookError(f'{where} is not a JSON object with a "text" ({error})') from error
    if not isinstance(text, str) or not text.strip():
        raise BookError(f'{where} has an empty "text"; leave such lines out')
    named = {name: str(fields.get(name) or "") for name in ("id", "title", "author")}
    return Document(text=text, **(named | {"id": named["id"] or where}))
