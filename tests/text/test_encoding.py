import pytest

from epilogue.errors import BookError
from epilogue.text.encoding import decode_text, normalise

TEXT = "“Café,” she said—and the naïve waiter brought nothing at all for an hour.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_encodings(encoding: str) -> None:
    assert decode_text(TEXT.encode(encoding), "book.txt") == TEXT


def test_latin_1_where_windows_has_no_character() -> None:
    assert decode_text(b"caf\xe9 \x81 au lait", "book.txt").startswith("café ")


def test_one_broken_byte_does_not_turn_a_utf8_file_into_latin() -> None:
    assert decode_text(TEXT.encode() * 9 + b"\xe2\x80", "book.txt") == TEXT * 9 + "\ufffd"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b" \r\n ", "empty"),
        ("\ufeff".encode(), "empty"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"PK\x03\x04....", "ZIP"),
        (b"\0" * 60 + b"BOOKMOBI", "MOBI"),
        (b"{\\rtf1 hello}", "RTF"),
        (b"text with\0zeros in it", "not text"),
        (bytes(range(1, 32)) * 20, "not text"),
        (b"\xff\xfeabc", "UTF-16"),
    ],
)
def test_what_is_no_text(data: bytes, said: str) -> None:
    with pytest.raises(BookError, match=said) as raised:
        decode_text(data, "book.bin")
    assert str(raised.value).startswith("book.bin ")
    assert "\n" not in str(raised.value)


def test_characters_are_normalised() -> None:
    assert normalise("a\r\nb\rc\u2028d\fe") == "a\nb\nc\nd\n\ne"
    assert normalise("e\u0301 soft\u00adhyphen\u00a0no\u200bspace\x07") == "é softhyphen nospace"
