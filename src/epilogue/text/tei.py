"""TEI to blocks: the body of a text in the Text Encoding Initiative's XML, as ELTeC and many libraries give novels.

Front and back matter, notes, page marks and the header's other matter go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from epilogue.errors import BookError
from epilogue.text.book import SCENE_BREAK
from epilogue.text.encoding import normalise
from epilogue.text.paragraphs import Block, clean_paragraph

_START = re.compile(r"\s*(?:<\?.*?\?>\s*|<!--.*?-->\s*|<!DOCTYPE[^>\[]*>\s*)*<(?:\w+:)?TEI(?:\.2|Corpus)?\b", re.S)
_PARAGRAPHS = {"p", "ab", "opener", "closer", "salute", "signed", "dateline", "epigraph", "item", "speaker", "stage"}
_PARTS = {"p", "lg", "l"}
_DROPPED = {"note", "pb", "fw", "figure", "index", "teiHeader", "front", "back"}
_BREAKS = {"lb", "cb", "gb"}
_DEEPEST_HEADING = 3
_TITLE_NOTE = re.compile(
    r"\s*:?\s*(?:ELTeC edition|an? (?:electronic|digital) (?:edition|version|transcription)).*", re.I
)


@dataclass(frozen=True)
class TeiText:
    """What a TEI document holds: title and author of its header, paragraphs and headings of its body."""

    title: str
    author: str
    blocks: tuple[Block, ...]


def is_tei(text: str) -> bool:
    """Whether a decoded text begins as a TEI document does."""
    return _START.match(text[:4096]) is not None


def read_tei(text: str, source: str) -> TeiText:
    """The paragraphs and headings of a TEI document; ``source`` names it in errors.

    Raises:
        BookError: it is no valid XML, declares entities, or is no TEI document with a body.
    """
    if "<!ENTITY" in text:
        raise BookError(f"{source} declares entities of its own, which are not read; export it without them")
    try:
        root = ElementTree.fromstring(re.sub(r"\A\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise BookError(f"{source} is not valid XML ({error}); export the book again") from error
    bodies = root.findall(".//{*}text/{*}body")
    if not bodies:
        raise BookError(f"{source} is no TEI document with a body, the only XML that is read; give a book's file")
    title = _TITLE_NOTE.sub("", _words(root.find(".//{*}titleStmt/{*}title")))
    author = re.sub(r"\s*\([\d?\s-]+\)", "", _words(root.find(".//{*}titleStmt/{*}author")))
    return TeiText(title, author, tuple(block for body in bodies for block in _blocks(body, 0)))


def _blocks(element: ElementTree.Element, depth: int) -> Iterator[Block]:
    for child in element:
        name = _name(child)
        if name in _DROPPED:
            continue
        if name == "head":
            yield from _block(_text(child), min(max(depth, 1), _DEEPEST_HEADING))
        elif name == "lg":
            yield from _verse(child)
        elif name in ("milestone", "space") or _words(child) in ("*", "***", "* * *"):
            yield Block(SCENE_BREAK)
        elif name == "l" or (name in _PARAGRAPHS and not any(_name(inner) in _PARTS for inner in child)):
            yield from _block(_text(child))
        else:
            yield from _blocks(child, depth + name.startswith("div"))


def _verse(group: ElementTree.Element) -> Iterator[Block]:
    stanzas = group.findall("{*}lg")
    if stanzas:
        yield from _blocks(group, 0)
    else:
        yield from _block("\n".join(_words(line) for line in group if _name(line) in ("l", "head")))


def _block(text: str, level: int = 0) -> Iterator[Block]:
    if text := clean_paragraph(text):
        yield Block(text, level)


def _text(element: ElementTree.Element) -> str:
    """The words of an element on one line, without notes and page marks."""
    return " ".join("".join(_pieces(element)).split())


def _pieces(element: ElementTree.Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if _name(child) in _BREAKS:
            yield " "
        elif _name(child) not in _DROPPED:
            yield from _pieces(child)
        yield child.tail or ""


def _words(element: ElementTree.Element | None) -> str:
    return "" if element is None else normalise(_text(element))


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "note"  # comments have no name
