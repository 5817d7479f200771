"""Project Gutenberg: fetches a book by its number and takes the licence and the production notes off a text.

The markers have been spelled in many ways since 1991; those known are listed here, each as a pattern on one line.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from epilogue.errors import BookError
from epilogue.text.paragraphs import Block

_URL = "https://www.gutenberg.org/cache/epub/{id}/pg{id}.txt"
_USER_AGENT = "epilogue (reads one book on a person's request)"
_TIMEOUT_S = 30
_MAX_BYTES = 64 * 2**20
_LONGEST_HEADER = 1000  # lines; the longest small print with its preface has about 500
_LONGEST_MARKER = 3  # lines
_FRONT_PARAGRAPHS = 16  # how far into a book its production credits and title page may reach
_PROSE = 200  # characters that no line of a title page has

_GUTENBERG = r"(?:the\s+)?(?:copyrighted\s+)?project\s+gutenberg"
_HEADER_END = re.compile(
    rf"^\W*start\s+of\s+(?:the|this|)\s*{_GUTENBERG}"
    r"|^\W*end[\s*]*the\s+small\s+print",
    re.I | re.M,
)
_FOOTER_START = re.compile(
    rf"^\W*(?:this\s+is\s+the\s+)?end\s+of\s+(?:the\s+|this\s+)?{_GUTENBERG}"
    rf"|^\W*(?:fin\s+de|ende\s+dieses|einde\s+van)\s+(?:\w+\s+)?{_GUTENBERG}"
    r"|^\W*start:\s+full\s+license|^\W*the\s+full\s+project\s+gutenberg\s+licen[sc]e",
    re.I | re.M,
)
_CREDIT = re.compile(
    r"(?:\*+\s*)?\[?(?:(?:html\s+version\s+)?(?:produced|transcribed|prepared|scanned)\s+(?:by|from)\b"
    r"|(?:this\s+)?e-?(?:text|book)\s+(?:was\s+)?(?:prepared|produced|transcribed|scanned|created)\b"
    r"|transcriber[\u2019']?s?[\u2019']?\s+notes?\b|note:\s+project\s+gutenberg\s+also|\[e(?:text|book)\s*#\d"
    r"|(?:this\s+file\s+was\s+)?produced\s+from\s+(?:images|scans))",
    re.I,
)
_CLOSING_NOTE = re.compile(r"\W*transcriber[\u2019']?s?[\u2019']?\s+(?:end)?notes?\b", re.I)
_IMPRINT = re.compile(
    r"(?:copyright|\(c\)|\u00a9|(?:first\s+)?published|printed\s+in|all\s+rights\s+reserved|illustrated\s+by|new\s+york\W*$"
    r"|london\W*$|new\s+york\n|london\n|first\s+edition|[\[(]?(?:1[5-9]\d\d|M[DCLXVI]{3,})[\])]?\.?$)",
    re.I,
)
_THE_END = re.compile(r"(?:the\s+end|finis|fin|end)\W*", re.I)
_ILLUSTRATION = re.compile(r"\[(?:Illustration|Frontispiece|Pg|Page)\b[^\[\]]{0,800}\]", re.I)
_FIELD = r"^\s*{}:[ \t]*(.+)$"
_OF_BY = re.compile(
    r"project\s+gutenberg(?:'s|\u2019s|\s+e-?(?:book|text)s?)(?:\s+of|,)?\s+(.+?),\s+by\s+([^\n*\[]+)", re.I
)


@dataclass(frozen=True)
class Credits:
    """What a file says about its book; empty where it says nothing.

    Attributes:
        title: of the book.
        author: of the book.
        is_gutenberg: whether the licence was found.
    """

    title: str = ""
    author: str = ""
    is_gutenberg: bool = False


def fetch_gutenberg(book_id: str) -> bytes:
    """The plain text of a Project Gutenberg book, as its bytes.

    Raises:
        BookError: the number is none, there is no such text, or the network cannot be reached.
    """
    if not (book_id.isascii() and book_id.isdigit()):
        raise BookError(f"a Project Gutenberg number has digits only, got {book_id!r}; write gutenberg:64317")
    url = _URL.format(id=int(book_id))
    request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            data: bytes = response.read(_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise BookError(
            f"Project Gutenberg has no plain text of number {book_id} (HTTP {error.code} for {url}); check the number"
        ) from error
    except (OSError, ValueError) as error:
        raise BookError(
            f"Project Gutenberg cannot be reached ({error}); save the book from {url} elsewhere and give the file"
        ) from error
    if len(data) > _MAX_BYTES:
        raise BookError(f"the text at {url} is larger than {_MAX_BYTES} bytes; save it and give the file")
    return data


def find_work(units: Sequence[str]) -> tuple[slice, Credits]:
    """Where the work lies between Gutenberg's header and footer, and what the header says of it.

    Units are lines or paragraphs; a text without the markers is the work from end to end.
    """
    start = _end_of_header(units)
    end = next(
        (i for i in range(start, len(units)) if _mentions(units[i]) and _FOOTER_START.search(units[i])), len(units)
    )
    if start == 0 and end == len(units):
        return slice(start, end), Credits()
    header = "\n".join(units[:start])
    title, author = _field("title", header), _field("author", header)
    if not title and (match := _OF_BY.search(header)):
        title, author = match[1].strip(), match[2].strip(" .")
    return slice(start, end), Credits(" ".join(title.split()), " ".join(author.split()), is_gutenberg=True)


def strip_illustrations(text: str) -> str:
    """The text without ``[Illustration: ...]`` and page marks."""
    return _ILLUSTRATION.sub("", text) if "[" in text else text


def strip_credits(blocks: Sequence[Block], credits: Credits) -> list[Block]:
    """The work without production credits, title page, transcriber's notes and the advertisements after its end."""
    front = next((i for i, block in enumerate(blocks) if len(block.text) > _PROSE), 0)
    front = min(front, _FRONT_PARAGRAPHS)
    names = {_letters(text) for text in (credits.title, credits.author, f"by {credits.author}", "by")}
    names.add(_letters(f"{credits.title} by {credits.author}"))
    kept = [
        block
        for i, block in enumerate(blocks)
        if not (i < _FRONT_PARAGRAPHS and _CREDIT.match(block.text))
        and not (i < front and (_letters(block.text) in names or _IMPRINT.match(block.text)))
    ]
    return kept[: _end_of_work(kept)]


def _mentions(unit: str) -> bool:
    """Whether a marker can be in it: a glance that spares the patterns most of a book."""
    lower = unit.lower()
    return "gutenberg" in lower or "small" in lower or "license" in lower


def _end_of_work(blocks: Sequence[Block]) -> int:
    """The index after the last paragraph of the work: notes and lists of books follow it, but no prose."""
    first = int(0.9 * len(blocks))
    note = next((i for i in range(first, len(blocks)) if _CLOSING_NOTE.match(blocks[i].text)), len(blocks))
    for i in reversed(range(first, note)):
        if _THE_END.fullmatch(blocks[i].text):
            is_all_lists = all(len(block.text) < 2 * _PROSE for block in blocks[i + 1 : note])
            return i + 1 if is_all_lists else note
    return note


def _end_of_header(units: Sequence[str]) -> int:
    """The index after the last header marker; a marker may run over several lines."""
    found = [i for i, unit in enumerate(units[:_LONGEST_HEADER]) if _mentions(unit) and _HEADER_END.search(unit)]
    if not found:
        return 0
    last = found[-1]
    if units[last].lstrip().startswith("***") and not units[last].rstrip().endswith("*"):
        for i in range(last + 1, min(last + _LONGEST_MARKER, len(units))):
            if units[i].rstrip().endswith("***"):
                return i + 1
    return last + 1


def _field(name: str, header: str) -> str:
    match = re.search(_FIELD.format(name), header, re.I | re.M)
    return match[1].strip() if match else ""


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
