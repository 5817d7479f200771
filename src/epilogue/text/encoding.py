"""Bytes to clean text: finds the encoding, refuses what is not text, and normalises characters.

UTF-8 and UTF-16 are recognised; everything else is read as Windows-1252, the usual encoding of old files.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

from epilogue.errors import BookError

_MAGIC = (
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"PK\x03\x04", "a ZIP archive (perhaps DOCX or ODT)"),
    (b"\xd0\xcf\x11\xe0", "an old Word document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
)
_MOBI_OFFSET = 60  # a Palm database carries its type and creator here
_BOMS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 65536
_MAX_CONTROL_SHARE = 0.005
_GOOD_PER_BAD = 20  # so many good UTF-8 characters for a broken one make a damaged UTF-8 file, not a Latin one

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028]")
_PAGE_ENDS = re.compile(r"[\f\v\u2029]")
_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INVISIBLE = re.compile(r"[\u00ad\u200b\u2060\ufeff]")


def decode_text(data: bytes, source: str) -> str:
    """The normalised text of a file's bytes; ``source`` names it in errors.

    Raises:
        BookError: the bytes are empty, a known binary format, or not text.
    """
    if not data.strip():
        raise BookError(f"{source} is empty; give a file with text in it")
    _refuse_known_formats(data, source)
    text = _decode(data, source)
    sample = text[:_SAMPLE_BYTES]
    controls = len(_CONTROL.findall(sample))
    if "\x00" in text or controls > _MAX_CONTROL_SHARE * len(sample) + 1:
        raise BookError(f"{source} is not text (it has control characters); {_WANTED}")
    text = normalise(text)
    if not text.strip():
        raise BookError(f"{source} is empty; give a file with text in it")
    return text


def normalise(text: str) -> str:
    """NFC, line feeds as line ends, plain spaces, no soft hyphens, invisible or control characters."""
    text = _PAGE_ENDS.sub("\n\n", _LINE_ENDS.sub("\n", text))
    text = _INVISIBLE.sub("", _SPACES.sub(" ", text))
    return unicodedata.normalize("NFC", _CONTROL.sub("", text))


_WANTED = "give a .txt, .md, .html or .epub file"


def _refuse_known_formats(data: bytes, source: str) -> None:
    found = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if data[_MOBI_OFFSET : _MOBI_OFFSET + 8] in (b"BOOKMOBI", b"TEXtREAd"):
        found = "a MOBI or Palm book"
    if found:
        raise BookError(f"{source} is {found}, not text; {_WANTED}")


def _decode(data: bytes, source: str) -> str:
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), None) or _utf16_without_mark(data)
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding and encoding != "utf-8-sig":
            raise BookError(f"{source} is not whole {encoding.upper()} text ({error.reason}); {_WANTED}") from error
    damaged = data.decode("utf-8", errors="replace")
    bad = damaged.count("\ufffd")
    if sum(not c.isascii() for c in damaged) - bad > _GOOD_PER_BAD * bad:
        return damaged
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _utf16_without_mark(data: bytes) -> str | None:
    """UTF-16 of western text has a zero in every second byte, and hardly any in the others."""
    sample = data[: _SAMPLE_BYTES & ~1]
    half = max(1, len(sample) // 2)
    even, odd = sample[::2].count(0) / half, sample[1::2].count(0) / half
    if odd > 0.3 and even < 0.05:
        return "utf-16-le"
    if even > 0.3 and odd < 0.05:
        return "utf-16-be"
    return None
