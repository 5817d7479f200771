import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from epilogue.errors import BookError
from epilogue.text import Book, Chapter, read_book

PROSE = "The wind went round to the north in the night, and by the\nmorning nobody could see the end of the pier."
JOINED = PROSE.replace("\n", " ")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "The Pier.txt", f"CHAPTER I\r\n\r\n{PROSE}\n\nCHAPTER II\n\n{PROSE}\n\n***\n\n_No._\n")
    book = read_book(str(path))
    assert book.chapters == (
        Chapter("CHAPTER I", f"CHAPTER I\n\n{JOINED}"),
        Chapter("CHAPTER II", f"CHAPTER II\n\n{JOINED}\n\n* * *\n\nNo."),
    )
    assert (book.title, book.author, book.source) == ("The Pier", "", str(path))


@pytest.mark.parametrize("name", ["book", "book.story", "book.TXT", "book.log"])
def test_text_of_any_name(tmp_path: Path, name: str) -> None:
    assert read_book(write(tmp_path / name, PROSE)).text == JOINED


def test_reading_what_was_read_changes_nothing(tmp_path: Path) -> None:
    first = read_book(write(tmp_path / "a.txt", f"I\n\n{PROSE * 3}\n\n* * *\n\n“No,\nNo.”\n\nII\n\n{PROSE * 4}"))
    assert read_book(write(tmp_path / "b.txt", first.text)).chapters == first.chapters


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ("The Pier", "by A. Sea", ("The Pier", "A. Sea")),
        ("THE PIER", "BY ANNE SEA JR.", ("THE PIER", "ANNE SEA JR.")),
        ("The Pier", "by the authors of the Lighthouse", ("The Pier", "the authors of the Lighthouse")),
        ("It rained.", "By noon nobody could see the end of the pier.", ("file", "")),
        ("He waited,", "by the sea,", ("file", "")),
        ("The Pier", "by", ("file", "")),
        (JOINED, "by A. Sea", ("file", "")),
    ],
)
def test_a_title_page_of_two_paragraphs(tmp_path: Path, first: str, second: str, wanted: tuple[str, str]) -> None:
    text = f"{first}\n\n{second}\n\nI\n\n{JOINED * 3}\n\nII\n\n{JOINED * 3}"
    book = read_book(write(tmp_path / "file.txt", text))
    assert (book.title, book.author) == wanted
    assert book.text == text
    assert [chapter.title for chapter in book.chapters] == ["", "I", "II"]


def test_markdown(tmp_path: Path) -> None:
    source = f"---\ntitle: Pier\nauthor: A. Sea\n---\n# Pier\n\n## One\n\n{PROSE}\n\n## Two\n\n*{PROSE}*\n"
    book = read_book(write(tmp_path / "b.md", source))
    assert (book.title, book.author, [c.title for c in book.chapters]) == ("Pier", "A. Sea", ["", "One", "Two"])
    assert book.text == f"Pier\n\nOne\n\n{JOINED}\n\nTwo\n\n{JOINED}"


HTML = (
    "<!DOCTYPE html><html><head><title>{title}</title></head><body><h2>One</h2><p>It was.</p><h2>Two</h2><p>Night.</p>"
    "</body></html>"
)


@pytest.mark.parametrize("name", ["b.html", "b.xhtml", "b.htm", "b.txt", "b"])
def test_html(tmp_path: Path, name: str) -> None:
    book = read_book(write(tmp_path / name, HTML.format(title="Pier")))
    assert (book.title, [c.title for c in book.chapters]) == ("Pier", ["One", "Two"])
    assert book.text == "One\n\nIt was.\n\nTwo\n\nNight."


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("The Project Gutenberg eBook of Pier, by A. Sea", ("Pier", "A. Sea")),
        ("The Project Gutenberg eBook of Pier", ("Pier", "")),
        ("Pier | Project Gutenberg", ("Pier", "")),
    ],
)
def test_title_of_gutenberg_html(tmp_path: Path, title: str, wanted: tuple[str, str]) -> None:
    book = read_book(write(tmp_path / "b.html", HTML.format(title=title)))
    assert (book.title, book.author) == wanted


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (PROSE.encode(), PROSE.encode("utf-16"), f"<html><body><p>{PROSE}</p></body></html>".encode()):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert read_book("-") == Book("", "", (Chapter("", JOINED),), "-")


def test_nothing_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(BookError, match="standard input is empty"):
        read_book("-")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("none.txt", None, "there is no file"),
        ("a.txt", b"", "empty"),
        ("a.epub", b"", "empty"),
        ("a.txt", b"%PDF-1.4", "PDF"),
        ("a.docx", b"PK\x03\x04\0\0", "ZIP"),
        ("a.bin", b"\0\1\2\3" * 99, "not text"),
        ("a.html", b"<html><body><script>x</script></body></html>", "no text"),
        ("a.txt", b"***\n", "no text"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        write(tmp_path / name, data)
    with pytest.raises(BookError, match=said) as raised:
        read_book(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="is a directory"):
        read_book(tmp_path)


def test_impossible_path() -> None:
    with pytest.raises(BookError):
        read_book("a\0b.txt")


def test_gatsby_is_left_alone(corpus: Path) -> None:
    book = read_book(corpus / "gatsby.txt")
    assert book.text == (corpus / "gatsby.txt").read_text(encoding="utf-8").strip()
    assert [c.title for c in book.chapters] == ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]


@pytest.mark.parametrize(
    ("name", "title", "chapters", "first", "last"),
    [
        ("pellucidar", "Pellucidar", 16, "PROLOGUE", "Dian the Beautiful?"),
        ("treasure-island", "Treasure Island", 35, "To S.L.O.", "Pieces of eight! Pieces of eight!”"),
        ("time-machine", "The Time Machine", 18, "An Invention", "in the heart of man."),
        ("lost-princess-of-oz", "The Lost Princess of Oz", 27, "This Book is Dedicated", "THE END"),
        ("problems-of-philosophy", "The Problems of Philosophy", 16, "PREFACE", "any Future Metaphysic."),
    ],
)
def test_raw_gutenberg_files(corpus: Path, name: str, title: str, chapters: int, first: str, last: str) -> None:
    book = read_book(corpus / "raw-samples" / f"{name}.txt")
    assert (book.title, len(book.chapters)) == (title, chapters)
    assert book.text.startswith(first)
    assert book.text.endswith(last)
    assert "Gutenberg" not in book.text
