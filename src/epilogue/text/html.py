"""HTML to blocks: what a browser would show as paragraphs, with headings marked.

Scripts, navigation, page numbers, notes' marks and pictures go. Gutenberg's licence is cut off by its reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser, LexborNode

from epilogue.text.encoding import normalise
from epilogue.text.paragraphs import Block, clean_paragraph

_DROPPED = (
    "script, style, noscript, template, nav, svg, math, img, figure, audio, video, iframe, object, button, select,"
    " #pg-header, #pg-footer, .pg-boilerplate, #pg-machine-header, .fnanchor, .pagenum, .pageno, .toc,"
    " [hidden], [role='doc-noteref'], [role='doc-toc'], [role='doc-pagebreak']"
)
_BLOCKS = (
    "address, article, aside, blockquote, body, center, dd, details, div, dl, dt, fieldset, footer, header, hgroup, li,"
    " main, ol, p, pre, section, table, tr, ul, h1, h2, h3, h4, h5, h6"
)
_VERSE_LINES = ".stanza > .verse, .stanza > .line, .linegroup > .line"
_CHAPTER_HEADINGS = ("h1", "h2", "h3")
# Control characters, which cannot occur in the text (it is normalised first), mark what the tags meant.
_BLOCK, _LINE, _HEADING, _RULE = "\x1e", "\x1d", "\x1c", "\x1b"


@dataclass(frozen=True)
class Page:
    """What one HTML document holds.

    Attributes:
        title: of the document's head.
        author: of its ``meta`` elements.
        kinds: the ``epub:type`` words of its body and outermost sections.
        blocks: its paragraphs and headings in order.
    """

    title: str
    author: str
    kinds: frozenset[str]
    blocks: tuple[Block, ...]


def read_html(text: str) -> Page:
    """The paragraphs and headings of an HTML or XHTML document, already decoded."""
    # An HTML parser would take <title/> and <script/> of XHTML as opened for ever.
    tree = LexborHTMLParser(
        re.sub(r"<(title|script|style|iframe|a|span|div|p)\b([^<>]*)/>", r"<\1\2></\1>", normalise(text))
    )
    title, author, body = tree.css_first("head > title"), _author(tree), tree.body
    name = " ".join(title.text().split()) if title else ""
    if body is None:
        return Page(name, author, frozenset(), ())
    kinds = _kinds(body)
    for node in tree.css(_DROPPED):
        node.decompose()
    _mark(tree)
    return Page(name, author, kinds, tuple(_blocks(body.text(deep=True, separator=""))))


def _author(tree: LexborHTMLParser) -> str:
    for node in tree.css("meta[name]"):
        if (node.attributes.get("name") or "").lower() in ("author", "dc.creator", "dcterms.creator"):
            return " ".join((node.attributes.get("content") or "").split())
    return ""


def _kinds(body: LexborNode) -> frozenset[str]:
    nodes = [body, *body.css("body > section, body > div, body > section > section")]
    return frozenset(word for node in nodes for word in (node.attributes.get("epub:type") or "").split())


def _mark(tree: LexborHTMLParser) -> None:
    for node in tree.css("pre"):
        node.replace_with(_BLOCK + node.text(deep=True).replace("\n", _LINE) + _BLOCK)
    for node in tree.css("br"):
        node.replace_with(_LINE)
    for node in tree.css("hr"):
        node.replace_with(f"{_BLOCK}{_RULE}{_BLOCK}")
    for node in tree.css("td, th"):
        node.insert_after(" ")
    lines = {node.mem_id for node in tree.css(_VERSE_LINES)}
    for node in tree.css(_BLOCKS):
        if node.mem_id in lines:
            node.insert_after(_LINE)
            continue
        level = _CHAPTER_HEADINGS.index(node.tag) + 1 if node.tag in _CHAPTER_HEADINGS else 0
        node.insert_before(_BLOCK + (f"{_HEADING}{level}" if level else ""))
        node.insert_after(_BLOCK)


def _blocks(marked: str) -> list[Block]:
    blocks = []
    for part in marked.split(_BLOCK):
        level = 0
        if part.startswith(_HEADING):
            level, part = int(part[1]), part[2:]
        lines = (" ".join(line.split()) for line in part.replace(_RULE, "* * *").split(_LINE))
        # Two line breaks in a row are how old pages write a new paragraph.
        for text in re.split(r"\n{2,}", "\n".join(lines).strip("\n")):
            if text := clean_paragraph(text):
                blocks.append(Block(text, level))
    return blocks
