"""Opens a book: finds out what a source is, and leads it through its format's reader to a ``Book``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from epilogue.errors import BookError
from epilogue.text.book import Book
from epilogue.text.chapters import make_chapters
from epilogue.text.encoding import decode_text
from epilogue.text.epub import is_epub, read_epub
from epilogue.text.gutenberg import Credits, fetch_gutenberg, find_work, strip_credits, strip_illustrations
from epilogue.text.html import read_html
from epilogue.text.markdown import markdown_blocks, read_front_matter
from epilogue.text.paragraphs import Block, split_paragraphs
from epilogue.text.tei import is_tei, read_tei

_GUTENBERG = "gutenberg:"
_STANDARD_INPUT = "-"
_MAX_FILE_BYTES = 512 * 2**20
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_XML_SUFFIX = ".xml"
_MARKDOWN_SUFFIXES = (".md", ".markdown")
_HTML_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S)
_LONGEST_TITLE = 100  # characters of the line above "by NAME"
_BY_LINE = re.compile(r"by\s+(\S[^\n]{0,80}?(?:[^\W_]|\b[A-Z]\.|\b[JS]r\.))", re.I)
_HTML_TITLE = re.compile(r"(?:the\s+)?project\s+gutenberg\s+e-?(?:book|text)\s+of\s+(.+?)(?:,\s+by\s+(.+?))?\.?$", re.I)


def read_book(source: str | Path) -> Book:
    """Reads a whole book into the form the models are trained on.

    A Project Gutenberg licence, production credits, a table of contents, page numbers and typographic marks go; hard
    line ends are joined. A text already in that form stays as it is, up to its outer white space.

    Args:
        source: a path to a .txt, .md, .html, .epub or TEI .xml file (any other name is read by its content),
            ``gutenberg:ID`` for a book of Project Gutenberg (the only source that uses the network), or ``-`` for
            standard input.

    Raises:
        BookError: there is no such book, or it cannot be read as text; the message is one sentence.

    Memory: a few times the size of the text.
    """
    name = str(source)
    if name.startswith(_GUTENBERG):
        return _book(fetch_gutenberg(name.removeprefix(_GUTENBERG)), name, suffix=".txt", fallback_title="")
    if name == _STANDARD_INPUT:
        data = sys.stdin.buffer.read()
        return _book(data, name, suffix="", fallback_title="", called="standard input")
    path = Path(source).expanduser()
    return _book(_file_bytes(path), name, suffix=path.suffix.lower(), fallback_title=path.stem)


def read_book_bytes(data: bytes, name: str) -> Book:
    """Reads a book that is no file of its own, such as an archive's member; ``name`` tells its format as a path does.

    Raises:
        BookError: it cannot be read as text.
    """
    path = Path(name)
    return _book(data, name, suffix=path.suffix.lower(), fallback_title=path.stem)


def _file_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise BookError(f"{path} is a directory; give a book's file")
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise BookError(f"{path} has {size} bytes, more than {_MAX_FILE_BYTES}; split it")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BookError(
            f"there is no file {path}; give a book's file, gutenberg:ID, or - for standard input"
        ) from error
    except (OSError, ValueError) as error:
        raise BookError(f"{path} cannot be read ({error}); give a book's file") from error


def _book(data: bytes, source: str, *, suffix: str, fallback_title: str, called: str = "") -> Book:
    called = called or source
    if (suffix == ".epub" and data) or is_epub(data):
        epub = read_epub(data, called)
        blocks, credits = _without_licence(list(epub.blocks))
        title, author = epub.title or credits.title, epub.author or credits.author
    else:
        text = decode_text(data, called)
        if suffix in _HTML_SUFFIXES or _HTML_START.match(text):
            blocks, title, author = _from_html(text)
        elif suffix == _XML_SUFFIX or is_tei(text):
            tei = read_tei(text, called)
            blocks, title, author = list(tei.blocks), tei.title, tei.author
        elif suffix in _MARKDOWN_SUFFIXES:
            blocks, title, author = _from_markdown(text)
        else:
            blocks, title, author = _from_text(text)
    if not title:
        title, name = _title_page(blocks)
        author = author or name
    chapters = make_chapters(blocks, title)
    if not chapters:
        raise BookError(f"{called} has no text in it; give a book's file")
    return Book(title or fallback_title, author, chapters, source)


def _from_text(text: str) -> tuple[list[Block], str, str]:
    lines = text.split("\n")
    work, credits = find_work(lines)
    blocks = [Block(text) for text in split_paragraphs(strip_illustrations("\n".join(lines[work])))]
    return strip_credits(blocks, credits) if credits.is_gutenberg else blocks, credits.title, credits.author


def _from_markdown(text: str) -> tuple[list[Block], str, str]:
    text, fields = read_front_matter(text)
    lines = text.split("\n")
    work, credits = find_work(lines)
    title, author = fields.get("title") or credits.title, fields.get("author") or credits.author
    return markdown_blocks("\n".join(lines[work])), title, author


def _from_html(text: str) -> tuple[list[Block], str, str]:
    page = read_html(text)
    blocks, credits = _without_licence(list(page.blocks))
    title, author = page.title.removesuffix(" | Project Gutenberg"), page.author
    if match := _HTML_TITLE.match(title):
        title, author = match[1], author or match[2] or ""
    return blocks, credits.title or title, credits.author or author


def _title_page(blocks: list[Block]) -> tuple[str, str]:
    """Title and author where the text itself opens with one line and, as the next paragraph, "by NAME"."""
    if len(blocks) < 3 or "\n" in blocks[0].text or len(blocks[0].text) > _LONGEST_TITLE:
        return "", ""
    match = _BY_LINE.fullmatch(blocks[1].text)
    return (blocks[0].text, match[1]) if match else ("", "")


def _without_licence(blocks: list[Block]) -> tuple[list[Block], Credits]:
    """Cuts paragraphs as lines are cut."""
    work, credits = find_work([block.text for block in blocks])
    return strip_credits(blocks[work], credits) if credits.is_gutenberg else blocks, credits
