"""Iterate the books of a corpus: JSON lines (plain, Zstandard or gzip), single book files, and folders of either."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from epilogue.corpus.json_lines import JSON_LINES, read_json_lines
from epilogue.errors import BookError
from epilogue.text import read_book

_BOOKS = (".txt", ".md", ".markdown", ".html", ".htm", ".xhtml", ".epub")


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
            if file.name.lower().endswith(JSON_LINES):
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
        raise BookError(f"the folder {source} holds no {', '.join(JSON_LINES + _BOOKS)} file; choose another")
    return found


def _is_source(path: Path) -> bool:
    return path.name.lower().endswith(JSON_LINES + _BOOKS) and not any(part.startswith(".") for part in path.parts)


def _documents_of_lines(file: Path) -> Iterator[Document]:
    for number, fields in read_json_lines(file):
        named = {name: str(fields.get(name) or "") for name in ("id", "title", "author")}
        yield Document(text=fields["text"], **(named | {"id": named["id"] or f"{file.name}:{number}"}))
