"""Markdown to blocks: headings, paragraphs and hand-broken lines stay, marks go.

This reads manuscripts and novels, not documentation: tables, code and footnotes keep their characters.
"""

from __future__ import annotations

import html
import re

from epilogue.text.paragraphs import Block, clean_paragraph, split_paragraphs

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_FIELD = re.compile(r"^(title|author):[ \t]*[\"']?(.*?)[\"']?[ \t]*$", re.I | re.M)
_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
_HARD_BREAK = re.compile(r"(?: {2,}|\\)$")
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_DEEPEST_CHAPTER = 3
_LONGEST_HEADING = 120  # characters
_HELD = "\ue000"  # stands for an escaped mark until the others are gone; a private-use character

_INLINE = (
    (re.compile(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])"), ""),
    (re.compile(r"\[([^\]]+)\](?:\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\])"), r"\1"),
    (re.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (re.compile(r"</?[A-Za-z][^<>\n]*>"), ""),
    (re.compile(r"(\*{1,3})(?=\S)([^*]+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(\*\*)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<!\w)(_{1,3})(?=[^\s_])([^_]+?)(?<=[^\s_])\1(?!\w)"), r"\2"),
    (re.compile(r"(`+)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"~~(?=\S)(.+?)(?<=\S)~~"), r"\1"),
)


def read_front_matter(text: str) -> tuple[str, dict[str, str]]:
    """The text after a YAML head, and that head's ``title`` and ``author``."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return text, {}
    return text[match.end() :], {name.lower(): value for name, value in _FIELD.findall(match[1])}


def markdown_blocks(text: str) -> list[Block]:
    """The paragraphs and headings of a Markdown text; headings to the third level open chapters."""
    blocks: list[Block] = []
    lines: list[str] = []
    for line in [*_COMMENT.sub("", text).split("\n"), ""]:
        line = re.sub(r"^ {0,3}(?:> ?)+", "", line)
        heading = _ATX.match(line)
        if heading:
            blocks += [*_paragraphs(lines), *_heading(heading[2], len(heading[1]))]
        elif _SETEXT.match(line) and _is_single_line(lines):
            blocks += [*_paragraphs(lines[:-1]), *_heading(lines[-1], 1 if "=" in line else 2)]
        else:
            lines.append(line)
            continue
        lines = []
    return blocks + _paragraphs(lines)


def _is_single_line(lines: list[str]) -> bool:
    """Whether the last line stands alone and is short: underlined, such a line is a heading."""
    return 0 < len("".join(lines[-1:]).strip()) <= _LONGEST_HEADING and not "".join(lines[-2:-1]).strip()


def _heading(text: str, level: int) -> list[Block]:
    title = clean_paragraph(_without_marks(text))
    return [Block(title, level if level <= _DEEPEST_CHAPTER else 0)] if title else []


def _paragraphs(lines: list[str]) -> list[Block]:
    """Paragraphs are joined like plain text, except that a marked line end is a line end."""
    blocks: list[Block] = []
    plain: list[str] = []
    for group in _groups(lines):
        if any(_HARD_BREAK.search(line) for line in group[:-1]):
            blocks += _plain(plain)
            plain = []
            text = "".join(_HARD_BREAK.sub("\n", line) if _HARD_BREAK.search(line) else f"{line} " for line in group)
            blocks.append(Block(clean_paragraph(_without_marks(text.strip()))))
        else:
            plain += [*(line.rstrip("\\ ") for line in group), ""]
    return blocks + _plain(plain)


def _plain(lines: list[str]) -> list[Block]:
    paragraphs = (clean_paragraph(_without_marks(part)) for part in split_paragraphs("\n".join(lines)))
    return [Block(text) for text in paragraphs if text]


def _groups(lines: list[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            groups[-1].append(line)
        else:
            groups.append([])
    return [group for group in groups if group]


def _without_marks(text: str) -> str:
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:
        held.append(match[1])
        return _HELD

    text = re.sub(r"\\([\\`*_{}\[\]()#+\-.!~>])", hold, text)
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    characters = iter(held)
    return html.unescape(re.sub(_HELD, lambda _: next(characters), text))
