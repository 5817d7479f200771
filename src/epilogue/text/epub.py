"""EPUB to blocks: container, package, spine, in memory; nothing is written to disk.

Front and back matter that is no part of the work (navigation, title page, colophon, notes) is left out where the file
says what it is. Books under digital rights management are refused.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote
from xml.etree import ElementTree

from epilogue.errors import BookError
from epilogue.text.encoding import decode_text
from epilogue.text.html import Page, read_html
from epilogue.text.paragraphs import Block

_MAX_TEXT_BYTES = 512 * 2**20
_MAX_XML_BYTES = 16 * 2**20
_TEXT_SUFFIXES = (".xhtml", ".html", ".htm", ".xml", ".opf", ".ncx")
_TEXT_TYPES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_RIGHTS = ("META-INF/rights.xml", "META-INF/sinf.xml")
_FONT_MASKS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_FONT_SUFFIXES = (".ttf", ".otf", ".woff", ".woff2", ".ttc")
_NOT_THE_WORK = frozenset(
    {"toc", "landmarks", "loi", "lot", "page-list", "cover", "titlepage", "title-page", "halftitlepage", "imprint"}
    | {"colophon", "copyright-page", "endnotes", "footnotes", "rearnotes", "index"}
)


@dataclass(frozen=True)
class Epub:
    """What an EPUB holds.

    Attributes:
        title: from the package's metadata.
        author: all creators, in order.
        blocks: the paragraphs and headings of the spine in reading order.
    """

    title: str
    author: str
    blocks: tuple[Block, ...]


def read_epub(data: bytes, source: str) -> Epub:
    """The text of an EPUB file's bytes; ``source`` names it in errors.

    Raises:
        BookError: the archive or its package is broken, it is protected, or its text is too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(_Members(archive, source))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise BookError(f"{source} is not a whole EPUB ({error}); download or export it again") from error


def is_epub(data: bytes) -> bool:
    """Whether bytes are a ZIP archive that calls itself an EPUB."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _CONTAINER in archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return False


class _Members:
    """The files of an EPUB's archive, refused at once if they are too large or protected."""

    def __init__(self, archive: zipfile.ZipFile, source: str) -> None:
        self.source = source
        self._archive = archive
        self._names = set(archive.namelist())
        members = archive.infolist()
        size = sum(member.file_size for member in members if member.filename.lower().endswith(_TEXT_SUFFIXES))
        if size > _MAX_TEXT_BYTES:
            raise BookError(f"{source} unpacks to {size} bytes of text, more than {_MAX_TEXT_BYTES}; split the book")
        locked = any(member.flag_bits & 1 for member in members) or any(name in self._names for name in _RIGHTS)
        if locked or self._encrypts_text():
            raise BookError(f"{source} is protected (DRM) and cannot be read; give a copy without protection")

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> bytes:
        if name not in self._names:
            raise BookError(f"{self.source} is a broken EPUB: it names {name} but does not hold it; export it again")
        if self._archive.getinfo(name).file_size > _MAX_TEXT_BYTES:
            raise BookError(f"{self.source}: {name} unpacks to more than {_MAX_TEXT_BYTES} bytes; split the book")
        return self._archive.read(name)

    def xml(self, name: str) -> ElementTree.Element:
        data = self.read(name)
        if len(data) > _MAX_XML_BYTES or b"<!ENTITY" in data:
            raise BookError(f"{self.source}: {name} is no package file (too large, or with entities); export it again")
        try:
            return ElementTree.fromstring(data)
        except ElementTree.ParseError as error:
            raise BookError(f"{self.source}: {name} is not valid XML ({error}); export the book again") from error

    def _encrypts_text(self) -> bool:
        if _ENCRYPTION not in self._names:
            return False
        for entry in self.xml(_ENCRYPTION).iterfind(".//{*}EncryptedData"):
            methods = [method.get("Algorithm") for method in entry.findall("{*}EncryptionMethod")]
            targets = [target.get("URI", "") for target in entry.iterfind(".//{*}CipherReference")]
            masked = methods and all(method in _FONT_MASKS for method in methods)
            if not masked and not all(target.lower().endswith(_FONT_SUFFIXES) for target in targets):
                return True
        return False


def _read(members: _Members) -> Epub:
    rootfile = members.xml(_CONTAINER).find(".//{*}rootfile")
    package_name = unquote(rootfile.get("full-path", "")) if rootfile is not None else ""
    if not package_name:
        raise BookError(f"{members.source} is a broken EPUB: {_CONTAINER} names no package file; export it again")
    package = members.xml(package_name)
    title = next(_texts(package, "title"), "")
    author = ", ".join(dict.fromkeys(_texts(package, "creator")))
    blocks: list[Block] = []
    for name in _spine(package, posixpath.dirname(package_name), members.source):
        page = _page(members, name)
        if not page.kinds & _NOT_THE_WORK:
            blocks += page.blocks
    return Epub(title, author, tuple(blocks))


def _texts(package: ElementTree.Element, name: str) -> Iterator[str]:
    for element in package.iter(f"{{http://purl.org/dc/elements/1.1/}}{name}"):
        text = " ".join("".join(element.itertext()).split())
        if text:
            yield text


def _spine(package: ElementTree.Element, folder: str, source: str) -> list[str]:
    """The members of the reading order, without navigation."""
    items = {item.get("id", ""): item for item in package.iterfind("{*}manifest/{*}item")}
    skipped = {
        _member(folder, reference.get("href", ""))
        for reference in package.iterfind("{*}guide/{*}reference")
        if reference.get("type", "").lower() in _NOT_THE_WORK
    }
    names = []
    for reference in package.iterfind("{*}spine/{*}itemref"):
        item = items.get(reference.get("idref", ""))
        if item is None:
            raise BookError(
                f"{source} is a broken EPUB: its spine names {reference.get('idref')!r}, which its manifest lacks;"
                " export it again"
            )
        name = _member(folder, item.get("href", ""))
        is_navigation = "nav" in item.get("properties", "").split() or name in skipped
        is_text = item.get("media-type", _TEXT_TYPES[0]) in _TEXT_TYPES
        if is_text and not is_navigation and reference.get("linear") != "no":
            names.append(name)
    if not names:
        raise BookError(f"{source} is a broken EPUB: its spine names no text; export it again")
    return names


def _member(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(href.split("#")[0])))


def _page(members: _Members, name: str) -> Page:
    data = members.read(name)
    if not data.strip():
        return Page("", "", frozenset(), ())
    return read_html(decode_text(data, f"{members.source}: {name}"))
