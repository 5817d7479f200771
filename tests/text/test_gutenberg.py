import io
import urllib.error
import urllib.request
from email.message import Message
from typing import Any

import pytest

from epilogue.errors import BookError
from epilogue.text import read_book
from epilogue.text.gutenberg import find_work, strip_credits, strip_illustrations
from epilogue.text.paragraphs import Block

HEADERS = {
    "new": "The Project Gutenberg eBook of Pier\n\nTitle: Pier\n\nAuthor: A. Sea\n\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK PIER ***",
    "this": "Title: Pier\nAuthor: A. Sea\n\n*** START OF THIS PROJECT GUTENBERG EBOOK PIER ***",
    "tight": "Title: Pier\nAuthor: A. Sea\n\n***START OF THE PROJECT GUTENBERG EBOOK PIER***",
    "two lines": "Title: Pier\nAuthor: A. Sea\n\n*** START OF THIS PROJECT GUTENBERG EBOOK A VERY LONG\nTITLE ***",
    "small print": "**The Project Gutenberg Etext of Pier, by A. Sea**\n\n"
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**\n"
    "many words\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
    "1991": "Project Gutenberg's Pier, by A. Sea\n\nwords\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*",
    "twice": "Title: Pier\nAuthor: A. Sea\n*** START OF THIS PROJECT GUTENBERG EBOOK PIER ***\n\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK PIER ***",
}  # fmt: skip
FOOTERS = [
    "*** END OF THE PROJECT GUTENBERG EBOOK PIER ***",
    "***END OF THIS PROJECT GUTENBERG EBOOK PIER***",
    "End of Project Gutenberg's Pier, by A. Sea",
    "End of the Project Gutenberg EBook of Pier, by A. Sea",
    "End of The Project Gutenberg Etext of Pier",
    "      *** START: FULL LICENSE ***",
    "This is the end of the Project Gutenberg edition.",
]
WORK = ["It was morning.", "", "End of the pier, they said."]


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("footer", FOOTERS)
def test_licence_is_cut_in_every_spelling(header: str, footer: str) -> None:
    lines = [*header.split("\n"), *WORK, *footer.split("\n"), "licence"]
    work, credits = find_work(lines)
    assert lines[work] == WORK
    assert (credits.title, credits.author, credits.is_gutenberg) == ("Pier", "A. Sea", True)


def test_text_without_markers_is_whole() -> None:
    work, credits = find_work(WORK)
    assert WORK[work] == WORK
    assert not credits.is_gutenberg


def test_credits_title_page_and_notes_go() -> None:
    _, credits = find_work([*HEADERS["this"].split("\n"), "x"])
    front = [
        "Produced by A. Volunteer and B. Volunteer",
        "PIER",
        "by",
        "A. SEA",
        "London",
        "1899",
        "[Transcriber's Note: x]",
    ]
    body = ["To Anna", "CHAPTER I", *["It was morning. " * 20] * 60, "THE END"]
    back = ["Other books by A. Sea", "Sand", "Transcriber's Notes", "One comma was moved."]
    assert [b.text for b in strip_credits([Block(t) for t in [*front, *body, *back]], credits)] == body
    epilogue = ["EPILOGUE", "Years passed. " * 40]
    assert [b.text for b in strip_credits([Block(t) for t in [*body, *epilogue]], credits)] == [*body, *epilogue]


def test_illustrations_and_page_marks_go() -> None:
    assert strip_illustrations("a [Illustration: The\n\npier.] b[Pg 12] [Illustration] [sic]") == "a  b  [sic]"


class Response(io.BytesIO):
    pass


def test_book_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[urllib.request.Request] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> Response:
        asked.append(request)
        assert timeout > 0
        text = f"{HEADERS['new']}\r\n\r\nCHAPTER I\r\n\r\nIt was\r\nmorning.\r\n\r\n{FOOTERS[0]}\r\n"
        return Response(text.encode("utf-8-sig"))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    book = read_book("gutenberg:64317")
    assert (book.title, book.author, book.source) == ("Pier", "A. Sea", "gutenberg:64317")
    assert book.text == "CHAPTER I\n\nIt was morning."
    assert asked[0].full_url == "https://www.gutenberg.org/cache/epub/64317/pg64317.txt"
    assert "epilogue" in asked[0].headers["User-agent"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib.error.URLError("no route"), "cannot be reached"),
        (TimeoutError("slow"), "cannot be reached"),
        (urllib.error.HTTPError("u", 404, "Not Found", Message(), io.BytesIO()), "HTTP 404"),
    ],
)
def test_offline_and_missing_books(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def urlopen(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(BookError, match=said) as raised:
        read_book("gutenberg:99999999")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", ["", "abc", "12a", "-1", "../1", "²"])
def test_numbers_have_digits_only(number: str) -> None:
    with pytest.raises(BookError, match="digits"):
        read_book(f"gutenberg:{number}")
