"""Project Gutenberg's catalogue in its forms, and what its classes and subjects say of fiction."""

import tarfile
from pathlib import Path

import pytest

from epilogue.corpus.books import SourceBook
from epilogue.corpus.catalogue import CatalogueEntry, read_catalogue
from epilogue.corpus.genre import is_fiction_by_catalogue
from epilogue.corpus.judging import Wanted, check_genre
from epilogue.errors import BookError

CSV = """Text#,Type,Issued,Title,Language,Authors,Subjects,LoCC,Bookshelves
1342,Text,1998-06-01,Pride and Prejudice,en,"Austen, Jane, 1775-1817",England -- Fiction; Love stories,PR,
5,Sound,1990-01-01,A Reading,en,,,,
205,Text,1995-01-01,Walden,en,"Thoreau, Henry David",Wilderness areas; Authors -- Biography,PS; QH,
"""
RDF = """<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dcterms="http://purl.org/dc/terms/"
 xmlns:pgterms="http://www.gutenberg.org/2009/pgterms/" xmlns:dcam="http://purl.org/dc/dcam/">
<pgterms:ebook rdf:about="ebooks/1342"><dcterms:title>Pride and Prejudice</dcterms:title>
<dcterms:creator><pgterms:agent><pgterms:name>Austen, Jane</pgterms:name></pgterms:agent></dcterms:creator>
<dcterms:language><rdf:Description><rdf:value>en</rdf:value></rdf:Description></dcterms:language>
<dcterms:type><rdf:Description><rdf:value>Text</rdf:value></rdf:Description></dcterms:type>
<dcterms:subject><rdf:Description><dcam:memberOf rdf:resource="http://purl.org/dc/terms/LCC"/>
<rdf:value>PR</rdf:value></rdf:Description></dcterms:subject>
<dcterms:subject><rdf:Description><dcam:memberOf rdf:resource="http://purl.org/dc/terms/LCSH"/>
<rdf:value>Love stories</rdf:value></rdf:Description></dcterms:subject></pgterms:ebook></rdf:RDF>"""


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "pg_catalog.csv").write_text(CSV)
    first, second = read_catalogue(tmp_path / "pg_catalog.csv")
    assert (first.id, first.classes, first.subjects) == ("1342", ("PR",), ("England -- Fiction", "Love stories"))
    assert second.classes == ("PS", "QH")
    assert CatalogueEntry.from_dict(first.as_dict()) == first


def test_rdf_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    (tmp_path / "pg1342.rdf").write_text(RDF)
    with tarfile.open(tmp_path / "rdf-files.tar", "w") as archive:
        archive.add(tmp_path / "pg1342.rdf", "cache/epub/1342/pg1342.rdf")
    wanted = CatalogueEntry(
        id="1342",
        title="Pride and Prejudice",
        author="Austen, Jane",
        languages=("en",),
        classes=("PR",),
        subjects=("Love stories",),
    )
    assert list(read_catalogue(tmp_path)) == list(read_catalogue(tmp_path / "rdf-files.tar")) == [wanted]


def test_what_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pg_catalog.csv").write_text("a,b\n1,2\n")
    (tmp_path / "x.rdf").write_text("<rdf")
    for name, said in (("pg_catalog.csv", "no column 'Text#'"), ("x.rdf", "not valid RDF"), ("none", "no catalogue")):
        with pytest.raises(BookError, match=said):
            list(read_catalogue(tmp_path / name))


@pytest.mark.parametrize(
    ("classes", "subjects", "is_fiction"),
    [
        ("PZ", "", True),
        ("PR", "England -- Fiction", True),
        ("PS", "Letters -- Fiction", True),
        ("D", "World War, 1914-1918 -- Fiction", True),
        ("PR", "English poetry", False),
        ("PR", "Fiction -- History and criticism", False),
        ("PS", "Authors -- Biography", False),
        ("QA", "Mathematics", False),
        ("PS", "", None),
        ("PR", "Short stories; Poetry", None),
        ("", "", None),
    ],
)
def test_classes_and_subjects(classes: str, subjects: str, is_fiction: bool | None) -> None:
    entry = CatalogueEntry(id="1", classes=tuple(classes.split()), subjects=tuple(filter(None, subjects.split("; "))))
    assert is_fiction_by_catalogue(entry) is is_fiction


def test_the_catalogue_has_the_last_word_on_prose() -> None:
    text = "It is a truth which may be derived from reason.\n\n" * 50
    book = SourceBook(id="1", source="", gutenberg_id="1342", text=text, measures={"language": "en"})
    check_genre(book, Wanted(), {"1342": CatalogueEntry(id="1342", title="Emma", classes=("PZ",))})
    assert (book.dropped, book.title) == ("", "Emma")
    check_genre(book, Wanted(), {"1342": CatalogueEntry(id="1342", classes=("QA",))})
    assert (book.dropped, book.why) == ("not fiction (catalogue)", "the catalogue has it under QA")
