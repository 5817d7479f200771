import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from epilogue.errors import BookError
from epilogue.text import epub, read_book

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="E/p.opf"/></rootfiles></container>'
)
OPF = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>The Pier</dc:title><dc:creator>A. Sea</dc:creator><dc:creator>B. Sand</dc:creator></metadata>
<manifest><item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>
<item id="t" href="title.xhtml" media-type="application/xhtml+xml"/>
<item id="two" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="text/one%20a.xhtml" media-type="application/xhtml+xml"/>
<item id="pic" href="p.svg" media-type="image/svg+xml"/></manifest>
<spine><itemref idref="nav"/><itemref idref="t"/><itemref idref="one"/><itemref idref="pic"/><itemref idref="two"/>
<itemref idref="two" linear="no"/></spine></package>"""
ENCRYPTION = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:e="http://www.w3.org/2001/04/xmlenc#">
<e:EncryptedData><e:EncryptionMethod Algorithm="{0}"/><e:CipherData><e:CipherReference URI="{1}"/></e:CipherData>
</e:EncryptedData></encryption>"""


def page(body: str, kind: str = "chapter") -> str:
    head = '<?xml version="1.0"?><html xmlns:epub="x"><head><title/></head>'
    return f'{head}<body><section epub:type="{kind}">{body}</section></body></html>'


MEMBERS = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "E/p.opf": OPF,
    "E/nav.xhtml": page("<nav><ol><li>One</li></ol></nav><p>navigation</p>"),
    "E/title.xhtml": page("<h1>The Pier</h1>", "titlepage"),
    "E/text/one a.xhtml": page("<h2>One</h2><p>It was <i>mor</i>ning.</p>"),
    "E/text/two.xhtml": page("<h2>Two</h2><p>It was night.</p><hr/><p>“Café.”</p>"),
}


def make(path: Path, changes: Mapping[str, str | None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**MEMBERS, **(changes or {})}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def test_spine_is_read_in_order(tmp_path: Path) -> None:
    book = read_book(make(tmp_path / "b.epub"))
    assert (book.title, book.author) == ("The Pier", "A. Sea, B. Sand")
    assert [chapter.title for chapter in book.chapters] == ["One", "Two"]
    assert book.text == "One\n\nIt was morning.\n\nTwo\n\nIt was night.\n\n* * *\n\n“Café.”"
    assert list(tmp_path.iterdir()) == [tmp_path / "b.epub"]


def test_epub_is_known_by_its_content(tmp_path: Path) -> None:
    assert len(read_book(make(tmp_path / "b.download")).chapters) == 2


def test_licence_of_a_gutenberg_epub_is_cut(tmp_path: Path) -> None:
    head = "<h2>A Project Gutenberg eBook</h2><p>*** START OF THE PROJECT GUTENBERG EBOOK PIER ***</p>"
    one = page(f"{head}<h2>One</h2><p>It was.</p>")
    two = page(
        "<h2>Two</h2><p>Night.</p><p>*** END OF THE PROJECT GUTENBERG EBOOK PIER ***</p><h2>LICENSE</h2><p>x</p>"
    )
    assert read_book(make(tmp_path / "b.epub", {"E/text/one a.xhtml": one, "E/text/two.xhtml": two})).text == (
        "One\n\nIt was.\n\nTwo\n\nNight."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"META-INF/container.xml": None}, "container"),
        ({"META-INF/container.xml": "<container/>"}, "package"),
        ({"META-INF/container.xml": "<contai"}, "XML"),
        ({"E/p.opf": None}, "E/p.opf"),
        ({"E/p.opf": "<!DOCTYPE x [<!ENTITY a 'b'>]><x/>"}, "entities"),
        ({"E/p.opf": OPF.replace('idref="one"', 'idref="none"')}, "none"),
        ({"E/p.opf": "<package xmlns='http://www.idpf.org/2007/opf'/>"}, "spine"),
        ({"E/text/two.xhtml": None}, "two.xhtml"),
        ({"META-INF/encryption.xml": ENCRYPTION.format("aes128-cbc", "E/text/two.xhtml")}, "DRM"),
        ({"META-INF/rights.xml": "<rights/>"}, "DRM"),
        ({"META-INF/sinf.xml": "<sinf/>"}, "DRM"),
        ({"E/text/one a.xhtml": page(""), "E/text/two.xhtml": ""}, "no text"),
    ],
)  # fmt: skip
def test_broken_and_protected_books(tmp_path: Path, changes: dict[str, str | None], said: str) -> None:
    with pytest.raises(BookError, match=said) as raised:
        read_book(make(tmp_path / "b.epub", changes))
    assert "b.epub" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("algorithm", ["http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"])
def test_masked_fonts_are_no_protection(tmp_path: Path, algorithm: str) -> None:
    fonts = {"META-INF/encryption.xml": ENCRYPTION.format(algorithm, "E/fonts/a.otf")}
    assert len(read_book(make(tmp_path / "b.epub", fonts)).chapters) == 2


@pytest.mark.parametrize("damage", ["cut", "text", "flip"])
def test_damaged_archive(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path / "b.epub")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data[archive.getinfo("E/text/two.xhtml").header_offset + 60] ^= 0xFF
    path.write_bytes({"cut": bytes(data[:400]), "text": b"plain text", "flip": bytes(data)}[damage])
    with pytest.raises(BookError, match="not a whole EPUB"):
        read_book(path)


def test_book_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epub, "_MAX_TEXT_BYTES", 10_000)
    with pytest.raises(BookError, match="unpacks to"):
        read_book(make(tmp_path / "b.epub", {"E/text/two.xhtml": page("<p>a</p>" * 2000)}))
