"""Project Gutenberg's catalogue: pg_catalog.csv, or its RDF files, one a book, in a folder or an archive."""

import csv
import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from epilogue.errors import BookError

_COLUMNS = ("Text#", "Type", "Title", "Language", "Authors", "Subjects", "LoCC")
_LCC, _LCSH = "http://purl.org/dc/terms/LCC", "http://purl.org/dc/terms/LCSH"
_TEXT_TYPES = ("", "text")


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """What a library's catalogue says of a book."""

    id: str
    """The number at Project Gutenberg."""
    title: str = ""
    author: str = ""
    languages: tuple[str, ...] = ()
    """ISO 639 codes."""
    classes: tuple[str, ...] = ()
    """Library of Congress classes, such as PR."""
    subjects: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "CatalogueEntry":
        """What ``as_dict`` gave, back from JSON."""
        listed = {name: tuple(fields[name]) for name in ("languages", "classes", "subjects")}
        return cls(**(fields | listed))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def is_catalogue(path: Path) -> bool:
    """Whether a file is called as Project Gutenberg calls its catalogue's files."""
    name = path.name.lower()
    return name.startswith(("pg_catalog.csv", "rdf-files.tar")) or name.endswith(".rdf")


def read_catalogue(path: Path) -> Iterator[CatalogueEntry]:
    """Every text of a catalogue: a .csv (.csv.gz), an .rdf file, or a folder, .zip or .tar of .rdf files.

    Raises:
        BookError: there is no such file, or it is none of these.
    """
    if not path.exists():
        raise BookError(f"there is no catalogue {path}; give Project Gutenberg's pg_catalog.csv or its RDF files")
    if ".csv" in path.name.lower():
        yield from _from_csv(path)
        return
    for name, data in _rdf_files(path):
        try:
            yield from _from_rdf(ElementTree.fromstring(data))
        except ElementTree.ParseError as error:
            raise BookError(f"{name} in {path} is not valid RDF ({error}); fetch the catalogue again") from error


def _from_csv(path: Path) -> Iterator[CatalogueEntry]:
    is_packed = path.suffix.lower() == ".gz"
    with (
        gzip.open(path) if is_packed else path.open("rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as lines,
    ):
        reader = csv.DictReader(lines)
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise BookError(f"{path} has no column {missing[0]!r}; give Project Gutenberg's own pg_catalog.csv")
        for row in reader:
            if (row["Type"] or "").lower() in _TEXT_TYPES:
                yield CatalogueEntry(
                    id=row["Text#"].strip(),
                    title=" ".join((row["Title"] or "").split()),
                    author=(row["Authors"] or "").partition(";")[0].strip(),
                    languages=_parts(row["Language"]),
                    classes=_parts(row["LoCC"]),
                    subjects=_parts(row["Subjects"]),
                )


def _parts(value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(";") if part.strip())


def _rdf_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.rdf")):
            yield file.name, file.read_bytes()
    elif path.suffix.lower() == ".rdf":
        yield path.name, path.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".rdf"):
                    yield name, archive.read(name)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".rdf") and (opened := archive.extractfile(member)):
                    yield member.name, opened.read()
    else:
        raise BookError(f"{path} is no catalogue; give Project Gutenberg's pg_catalog.csv or its RDF files")


def _from_rdf(root: ElementTree.Element) -> Iterator[CatalogueEntry]:
    for book in root.findall("{*}ebook"):
        about = next((value for name, value in book.attrib.items() if name.endswith("about")), "")
        kind = _value(book.find("{*}type//{*}value"))
        if kind.lower() not in _TEXT_TYPES:
            continue
        subjects = [(_member_of(node), _value(node.find(".//{*}value"))) for node in book.findall("{*}subject")]
        yield CatalogueEntry(
            id=about.rpartition("/")[2],
            title=_value(book.find("{*}title")),
            author=_value(book.find("{*}creator//{*}name")),
            languages=tuple(_value(node) for node in book.findall("{*}language//{*}value")),
            classes=tuple(value for scheme, value in subjects if scheme == _LCC),
            subjects=tuple(value for scheme, value in subjects if scheme == _LCSH),
        )


def _member_of(subject: ElementTree.Element) -> str:
    node = subject.find(".//{*}memberOf")
    return "" if node is None else next(iter(node.attrib.values()), "")


def _value(node: ElementTree.Element | None) -> str:
    return "" if node is None else " ".join((node.text or "").split())
