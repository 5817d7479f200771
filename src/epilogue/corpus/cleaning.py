"""A book as found to a book as the models are trained on it: encoding repaired, licence and others' notes taken out."""

import re

from epilogue.corpus.books import SourceBook
from epilogue.corpus.extra import require
from epilogue.errors import BookError
from epilogue.text import read_book_bytes

_NOTE = re.compile(r"\[\s*(?:transcriber|transcriptionist|proofreader|etext|e-text)[^\[\]]{0,2000}\]\s*", re.I)
# "#" and digits of the header: "[EBook #1342]", "Etext #76", "eBook No. 1342".
_NUMBER = re.compile(r"\be-?(?:book|text)\s*(?:#|no\.?)\s*(\d{1,6})\b", re.I)
# A first byte of UTF-8 and a further one, both read as Windows-1252: a glance that spares ftfy most of a book.
_SUSPECT = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u20ac\u201a-\u203a\u0152-\u0192\u02c6\u02dc\u2013-\u201e\u2122]|\u00c3 "
)
_HEADER = 20_000  # characters in which a number of Project Gutenberg's stands
# How Project Gutenberg and its mirrors call files: pg1342.txt, 1342-0.txt, 1342/1342.txt. A number alone says nothing.
_FILE_NUMBER = re.compile(r"(?:^|/)(?:pg(\d+)(?:-\w+)?|(\d+)-[08h]|(\d+)/\3)\.(?:txt|html?|epub)$", re.I)


def gutenberg_number(head: str, name: str) -> str:
    """The number at Project Gutenberg that a header or, where it says nothing, a file's name gives; else empty."""
    match = _NUMBER.search(head[:_HEADER]) or _FILE_NUMBER.search(name)
    return next(filter(None, match.groups())).lstrip("0") if match else ""


def clean_book(data: bytes, name: str, book: SourceBook) -> None:
    """Fill in text, title, author and number of a book from its bytes; drop it if it cannot be read."""
    head = data[:_HEADER].decode("latin-1")
    book.gutenberg_id = book.gutenberg_id or gutenberg_number(head, name)
    try:
        read = read_book_bytes(data, name)
    except BookError as error:
        book.drop("unreadable", str(error))
        return
    book.title, book.author = book.title or read.title, book.author or read.author
    book.text = strip_notes(repair_encoding(read.text))


def repair_encoding(text: str) -> str:
    """Undo UTF-8 that was read as Windows-1252 or Latin-1, paragraph by paragraph; all else stays as it is.

    Raises:
        BookError: ftfy is not installed.
    """
    if not _SUSPECT.search(text):
        return text
    ftfy = require("ftfy", purpose="repairing encodings")

    def repaired(paragraph: str) -> str:
        is_bad = _SUSPECT.search(paragraph) and ftfy.badness.is_bad(paragraph)
        return str(ftfy.fix_encoding(paragraph)) if is_bad else paragraph

    return "\n\n".join(map(repaired, text.split("\n\n")))


def strip_notes(text: str) -> str:
    """The text without bracketed notes of those who transcribed it, wherever they stand."""
    if not _NOTE.search(text):
        return text
    paragraphs = (_NOTE.sub("", paragraph).strip() for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
