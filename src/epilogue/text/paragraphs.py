"""Lines to paragraphs: joins hard-wrapped lines, keeps lines broken by hand, and normalises marks.

A line was broken by hand when the next line's first word would have fitted on it and that line starts with a capital:
verse, title pages, the heads of letters. What is a heading is not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from epilogue.text.book import SCENE_BREAK

_LONG_LINE = 120  # characters; no typist or wrapping program sets lines so wide
_LEAST_WIDTH = 60  # a file of verse alone must not pass its own width off as a margin
_SLACK = 2  # characters by which wrapping programs miss the margin

_DEEPEST_INDENT = 8  # characters by which a line of verse may stand in

_STAR_LINE = re.compile(r"\s*\*(\s*\*)*\s*")
_BREAKS = re.compile(
    r"\s*(?:[*\u2042\u2766\u2767](?:\s*\*)*|#(?:\s*#)*|(?:[-\u2013\u2014_=~\u2022\u00b7+]\s*){3,}|-*o0o-*)\s*",
    re.I,
)
_ITALICS = re.compile(r"(?<![\w_])_(?![_\s])([^_]+?)(?<!\s)_(?!_)|(?<!_)_([.,;:!?]+)_(?!_)")
_NUMBER_OF_LINE = re.compile(r"\s{3,}\d{1,5}$")
_OPENING = "\"'\u2018\u201c\u201e\u00ab([{_*-\u2013\u2014\u2026. "
_HYPHENATED = re.compile(r"[^\W\d_]-$")
_DASHED = re.compile(r"[^\s-](?:--|\u2014)$")


@dataclass(frozen=True)
class Block:
    """A paragraph and what the file says about it.

    Attributes:
        text: one line, or several if they were broken by hand.
        level: 1 to 3 for a heading marked as such in the file, else 0.
    """

    text: str
    level: int = 0


def split_paragraphs(text: str) -> list[str]:
    """The paragraphs of a plain text with line feeds as line ends."""
    blocks = _blocks(text)
    lines = [line for block in blocks for line in block]
    if _is_unwrapped(lines):
        if _has_no_blank_lines(blocks):
            return _cleaned(lines)
        return _cleaned("\n".join(block) for block in blocks)
    if _starts_paragraphs_by_indent(blocks):
        blocks = [part for block in blocks for part in _split_at_indents(block)]
    width = _wrap_width(blocks)
    return _cleaned(join_lines(block, width) for block in blocks)


def clean_paragraph(paragraph: str) -> str:
    """A paragraph without italics marks and outer space; a row of marks becomes the scene break ``* * *``."""
    text = paragraph.strip("\n").rstrip()
    if "\n" not in text:
        text = text.strip()
    if _BREAKS.fullmatch(text):
        return SCENE_BREAK
    return _ITALICS.sub(r"\1\2", text) if "_" in text else text


def settle_breaks(blocks: Iterable[Block]) -> list[Block]:
    """The blocks without scene breaks that divide nothing: doubled, at an end, or beside a marked heading."""
    kept: list[Block] = []
    for block in blocks:
        if block.text == SCENE_BREAK and (not kept or kept[-1].level or kept[-1].text == SCENE_BREAK):
            continue
        if block.level and kept and kept[-1].text == SCENE_BREAK:
            kept.pop()
        kept.append(block)
    return kept[:-1] if kept and kept[-1].text == SCENE_BREAK else kept


def join_lines(lines: list[str], width: int = _LEAST_WIDTH) -> str:
    """One paragraph of lines that were wrapped at ``width`` characters; lines broken by hand stay apart."""
    fits = [len(one) + 1 + len(_first_word(two)) <= width - _SLACK for one, two in pairwise(lines)]
    capital = [_starts_with_capital(two) for two in lines[1:]]
    if fits and sum(fits) >= 0.6 * len(fits) and sum(capital) >= 0.7 * len(fits):
        return _verse(lines)
    joined = lines[0].strip()
    width = min(width, max(map(len, lines)))  # a letter quoted in full is often set narrower than the rest
    for i, line in enumerate(lines[1:]):
        by_hand = fits[i] and capital[i] and len(lines[i]) < 0.7 * width
        joined += ("\n" if by_hand else _glue(joined[-4:], line.strip())) + line.strip()
    return re.sub(r"(?<=\S)[ \t]{2,}", " ", joined)


def _cleaned(paragraphs: Iterable[str]) -> list[str]:
    return [text for paragraph in paragraphs if (text := clean_paragraph(paragraph))]


def _blocks(text: str) -> list[list[str]]:
    """Runs of lines without a blank line; a row of stars is a block of its own."""
    blocks: list[list[str]] = [[]]
    for line in text.expandtabs(4).split("\n"):
        if not line.strip():
            blocks.append([])
        elif _STAR_LINE.fullmatch(line):
            blocks += [[line.strip()], []]
        else:
            blocks[-1].append(line.rstrip())
    return [block for block in blocks if block]


def _is_unwrapped(lines: list[str]) -> bool:
    return 2 * sum(len(line) for line in lines if len(line) > _LONG_LINE) > sum(map(len, lines))


def _has_no_blank_lines(blocks: list[list[str]]) -> bool:
    """Whether paragraphs follow one another line by line, as word processors export them."""
    neighbours = sum(len(one) > _LONG_LINE < len(two) for block in blocks for one, two in pairwise(block))
    return neighbours > 0.2 * sum(len(line) > _LONG_LINE for block in blocks for line in block)


def _starts_paragraphs_by_indent(blocks: list[list[str]]) -> bool:
    lines = [line for block in blocks for line in block]
    indented = sum(line.startswith(" ") for line in lines)
    return len(lines) > 15 * len(blocks) and 0.03 * len(lines) < indented < 0.6 * len(lines)


def _split_at_indents(block: list[str]) -> list[list[str]]:
    parts = [[block[0]]]
    for one, two in pairwise(block):
        if two.startswith(" ") and not one.startswith("  " * 4):
            parts.append([])
        parts[-1].append(two)
    return parts


def _wrap_width(blocks: list[list[str]]) -> int:
    lengths = sorted(len(line) for block in blocks for line in block[:-1])
    if not lengths:
        return _LEAST_WIDTH
    return max(_LEAST_WIDTH, min(_LONG_LINE, lengths[int(0.95 * (len(lengths) - 1))]))


def _verse(lines: list[str]) -> str:
    lines = [_NUMBER_OF_LINE.sub("", line) for line in lines]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    margin = min(indents)
    if indents[0] > margin or max(indents) - margin > _DEEPEST_INDENT:  # centred or set to the right, not verse
        lines, margin = [line.strip() for line in lines], 0
    return "\n".join(re.sub(r"(?<=\S) {2,}", " ", line[margin:]) for line in lines)


def _glue(before: str, after: str) -> str:
    """Nothing where a compound or a dash was broken at the line's end, else a space."""
    broken = _HYPHENATED.search(before) or _DASHED.search(before) or re.match(r"(?:--|\u2014)[^\s-]", after)
    return "" if broken else " "


def _first_word(line: str) -> str:
    return next(iter(line.split()), "")


def _starts_with_capital(line: str) -> bool:
    first = line.lstrip(_OPENING)[:1]
    return first.isupper() or first.isdigit()
