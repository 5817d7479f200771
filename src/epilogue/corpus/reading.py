"""Reads the books of a unit, one at a time, as they were found; nothing is held but the book."""

import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from epilogue.corpus.books import SourceBook
from epilogue.corpus.cleaning import clean_book
from epilogue.corpus.extra import require
from epilogue.corpus.hub import local_file
from epilogue.corpus.json_lines import read_json_lines
from epilogue.corpus.sources import Unit, is_book_name
from epilogue.errors import BookError

_MOST_BOOK_BYTES = 512 * 2**20
_YEAR = re.compile(r"\b1[0-9]{3}\b|\b20[0-9]{2}\b")


def read_unit(unit: Unit) -> Iterator[SourceBook]:
    """Every book of a unit, cleaned; one that cannot be read comes as dropped.

    Raises:
        BookError: the unit itself is missing or damaged.
    """
    path = local_file(unit.path)
    if unit.kind == "lines":
        for number, fields in read_json_lines(path):
            yield _from_fields(fields, f"{unit.name}:{number}")
    elif unit.kind == "table":
        yield from _from_table(path, unit.name)
    elif unit.kind == "tar":
        yield from _from_tar(path, unit.name)
    elif unit.kind == "member":
        with zipfile.ZipFile(path) as archive:
            yield _from_bytes(archive.read(unit.member), unit.name)
    elif unit.num_bytes > _MOST_BOOK_BYTES:
        book = SourceBook(id=unit.name, source=unit.name)
        book.drop("unreadable", f"{unit.num_bytes} bytes, more than {_MOST_BOOK_BYTES}")
        yield book
    else:
        yield _from_bytes(path.read_bytes(), unit.name)


def _from_bytes(data: bytes, name: str) -> SourceBook:
    book = SourceBook(id=str(PurePosixPath(name).with_suffix("")), source=name)
    clean_book(data, name, book)
    return book


def _from_fields(fields: Mapping[str, Any], name: str) -> SourceBook:
    """A book from JSON or a table's row; names of fields as in common collections of books."""

    def value(*names: str) -> str:
        return next((str(fields[name]) for name in names if fields.get(name) not in (None, "")), "")

    year = _YEAR.search(value("year", "publication_year", "date"))
    book = SourceBook(
        id=value("id", "identifier") or name,
        source=name,
        title=value("title", "book_title"),
        author=value("author", "authors"),
        year=int(year[0]) if year else None,
        gutenberg_id=value("gutenberg_id", "pg_id"),
    )
    clean_book(str(fields["text"]).encode(errors="replace"), f"{name}.txt", book)
    return book


def _from_table(path: Path, name: str) -> Iterator[SourceBook]:
    parquet = require("pyarrow.parquet", purpose="reading .parquet files")
    try:
        with parquet.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names:
                raise BookError(f"{name} has no column text, but {', '.join(table.schema_arrow.names)}; rename one")
            rows = (row for batch in table.iter_batches(batch_size=1) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                if row["text"]:
                    yield _from_fields(row, f"{name}:{number}")
    except (OSError, ValueError) as error:
        raise BookError(f"{name} is damaged ({error}); fetch it again") from error


def _from_tar(path: Path, name: str) -> Iterator[SourceBook]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and is_book_name(member.name) and (opened := archive.extractfile(member)):
                    yield _from_bytes(opened.read(), f"{name}/{member.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BookError(f"{name} is damaged ({error}); fetch it again") from error
