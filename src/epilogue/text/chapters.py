"""Paragraphs to chapters: finds headings, drops a table of contents, and cuts the book at the headings.

Headings marked in the file (Markdown, HTML) are taken as they are; in plain text they are recognised by their words and
by the order of their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from epilogue.text.book import PARAGRAPH_BREAK, SCENE_BREAK, Chapter
from epilogue.text.paragraphs import Block, settle_breaks

_LONGEST_HEADING = 120  # characters of one line
_MOST_HEADING_LINES = 4
_PROSE = 200  # characters from which a line is no entry of a table of contents
_LEAST_CHAPTER = 200  # characters between two numbers, at the median; less is a list
_MOST_JOINED_TITLES = 3  # more headings in a row than these are a list of headings
_MOST_MISSES = 1  # entries of a table of contents in a row that the text spells differently

_UNITS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth"
    " sixteenth seventeenth eighteenth nineteenth twentieth last"
)
_WORD = "|".join(f"{_UNITS} {_TENS} {_ORDINALS} thirtieth fortieth fiftieth".split())
_NUMBER = rf"(?:\d{{1,3}}|[ivxlc]+|(?:the\s+)?(?:{_WORD})(?:[\s-](?:{_WORD}))?)"
_PART = (
    "chapter|chap\\.?|book|part|volume|vol\\.?|canto|act|scene|stave|section|letter|story|tale|chapitre"
    "|livre|kapitel|hoofdstuk"
)
_NAMED = re.compile(rf"(?:the\s+)?(?:{_PART})\s+{_NUMBER}(?P<rest>\W.*)?", re.I)
_ORDINAL_FIRST = re.compile(rf"(?:the\s+)?(?:{_WORD})\s+(?:chapter|book|part|volume|act|canto)\W*", re.I)
_ALONE = re.compile(
    r"(?:the\s+|an?\s+|author's\s+)?(?:prologue|epilogue|preface|introduction|foreword|afterword|interlude|conclusion"
    r"|postscript|preamble|prelude|intermezzo|appendix|dedication|introductory(?:\s+note)?|author[\u2019']s\s+note)\W*",
    re.I,
)
_NUMBERED = re.compile(
    r"(?P<number>[IVXLC]+|\d{1,3})(?:\W*|(?:[.:\u2014\u2013]|\s?-{1,2})\s*(?P<rest>\S.*)|\s{1,4}(?P<title>[A-Z]\S.*))"
)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_CONTENTS = re.compile(
    r"(?:table\s+of\s+)?contents\W*|list\s+of\s+chapters\W*|inhoud\W*|table\s+des\s+mati[e\u00e8]res\W*", re.I
)
_ENTRY_NUMBER = re.compile(rf"\A(?:(?:{_PART})\s+)?{_NUMBER}\b[\s.:\u2014\u2013-]*", re.I)
_PAGE_NUMBER = re.compile(r"[\s.\u2026]*\b(?:\d{1,4}|[ivxl]+)\.?\s*$")


def make_chapters(blocks: Sequence[Block], title: str = "") -> tuple[Chapter, ...]:
    """The chapters of a book; ``title`` is the book's, which as a heading does not open a chapter."""
    blocks = drop_contents(settle_breaks(blocks))
    marked = [i for i, block in enumerate(blocks) if block.level]
    if len(marked) > 1 and sum(blocks[i].level == 1 for i in marked) == 1 and blocks[marked[0]].level == 1:
        marked = marked[1:]  # the only top heading over several others is the book's title
    if len(marked) < 2:
        marked = sorted({*marked, *find_headings([block.text for block in blocks])})
    marked = [i for i in marked if _key(blocks[i].text) != _key(title) or not title]
    return _cut([block.text for block in blocks], marked)


def find_headings(paragraphs: Sequence[str]) -> list[int]:
    """The indexes of the paragraphs that read as headings of chapters, books or parts."""
    found = {i for i, text in enumerate(paragraphs) if _is_named_heading(text)}
    numbers = [
        (i, value, bare) for i, text in enumerate(paragraphs) if (value := _number_of(text, bare := _is_bare(text)))
    ]
    sizes = [len(text) for text in paragraphs]
    for bare in (True, False):
        for run in _sequences([(i, value) for i, value, is_bare in numbers if is_bare is bare]):
            if median(sum(sizes[one + 1 : two]) for one, two in pairwise(run)) >= _LEAST_CHAPTER:
                found.update(run)
    return sorted(found)


def drop_contents(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without a table of contents.

    An entry is known by this: the heading it announces comes again later. So nothing is lost that is said only once.
    """
    kept = list(blocks)
    for i, block in enumerate(kept[: len(kept) // 2 + 1]):
        if _CONTENTS.fullmatch(block.text.split("\n")[0].strip()) and len(block.text) < _PROSE * 50:
            end = _end_of_contents(kept, i)
            if end > i + 1 or "\n" in block.text:
                return kept[:i] + kept[end:]
    return kept


def _end_of_contents(blocks: Sequence[Block], start: int) -> int:
    last_seen: dict[str, int] = {}
    for i in range(start + 1, len(blocks)):
        lines = blocks[i].text.split("\n")
        if len(lines) <= _MOST_HEADING_LINES and all(len(line) <= _LONGEST_HEADING for line in lines):
            for line in (*lines, " ".join(lines)):
                last_seen |= dict.fromkeys(_body_keys(line), i)
    end, misses, announced = start + 1, 0, set[str]()
    for i in range(start + 1, len(blocks)):
        lines = [line for line in blocks[i].text.split("\n") if line.strip()]
        hits = sum(any(last_seen.get(key, -1) > i for key in _entry_keys(line)) for line in lines)
        if 2 * hits >= len(lines):
            end, misses = i + 1, 0
        else:
            misses += 1
        # What was announced and does not come again is the first heading of the text itself.
        begins = 2 * hits < len(lines) and _key(blocks[i].text) in announced
        if begins or misses > _MOST_MISSES or any(len(line) > _PROSE for line in lines):
            break
        announced.update(key for line in lines for key in _entry_keys(line))
    return end


def _body_keys(line: str) -> set[str]:
    return {_key(line), _key(_ENTRY_NUMBER.sub("", line.strip(), count=1))} - {""}


def _entry_keys(line: str) -> set[str]:
    line = line.strip()
    bare = _PAGE_NUMBER.sub("", line)
    number = _ENTRY_NUMBER.match(line)
    return (_body_keys(line) | _body_keys(bare) | {_key(number[0] if number else "")}) - {""}


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _is_named_heading(text: str) -> bool:
    lines = text.split("\n")
    first = lines[0].strip()
    if len(lines) > _MOST_HEADING_LINES or any(len(line) > _LONGEST_HEADING for line in lines):
        return False
    if not first[:1].isupper() or text.rstrip()[-1:] in {",", ";"}:
        return False
    if _ALONE.fullmatch(first) or _ORDINAL_FIRST.fullmatch(first):
        return True
    match = _NAMED.fullmatch(first)
    return match is not None and _opens_a_title(match["rest"] or "")


def _opens_a_title(rest: str) -> bool:
    """Whether what follows a number is a title: 'Part one of the plan' is a sentence, 'Part One: The Plan' is not."""
    words = rest.strip(" .,:-\u2014\u2013\u201c\u2018\"'([_")
    return not words or not words[0].islower()


def _is_bare(text: str) -> bool:
    match = _NUMBERED.fullmatch(text.split("\n")[0].strip())
    return match is not None and not match["rest"] and not match["title"]


def _number_of(text: str, is_bare: bool) -> int:
    """The number that opens a paragraph which may be a heading, else 0."""
    lines = text.split("\n")
    match = _NUMBERED.fullmatch(lines[0].strip())
    if match is None or len(lines) > _MOST_HEADING_LINES or any(len(line) > _LONGEST_HEADING for line in lines):
        return 0
    title = match["rest"] or match["title"] or ""
    if not is_bare and (not _opens_a_title(title) or title[-1] in ",;" or len(title) > 80):
        return 0
    number = match["number"]
    return int(number) if number.isdigit() else _roman(number)


def _roman(text: str) -> int:
    values = [_ROMAN[c] for c in text.casefold()]
    return sum(-one if one < two else one for one, two in pairwise([*values, 0]))


def _sequences(numbers: list[tuple[int, int]]) -> list[list[int]]:
    """The indexes whose numbers count up from 1, count by count; a lone 1 is not a count."""
    runs: list[list[int]] = []
    for index, value in numbers:
        if value == 1:
            runs.append([index])
        elif runs and value == len(runs[-1]) + 1:
            runs[-1].append(index)
    return [run for run in runs if len(run) > 1]


def _cut(paragraphs: list[str], headings: list[int]) -> tuple[Chapter, ...]:
    """Chapters from heading to heading; headings with nothing between them open one chapter together."""
    groups: list[list[int]] = []
    for index in headings:
        last = groups[-1][-1] if groups else index
        is_next = index == last + 1 or (index == last + 2 and _is_subtitle(paragraphs[last], paragraphs[last + 1]))
        if groups and is_next:
            groups[-1].append(index)
        else:
            groups.append([index])
    starts = [group[0] for group in groups]
    chapters = []
    if not starts or starts[0] > 0:
        groups, starts = [[], *groups], [0, *starts]
    for group, start, end in zip(groups, starts, [*starts[1:], len(paragraphs)], strict=True):
        if end > start:
            chapters.append(Chapter(_title(paragraphs, group), PARAGRAPH_BREAK.join(paragraphs[start:end])))
    return tuple(chapters)


def _title(paragraphs: list[str], group: list[int]) -> str:
    if not group:
        return ""
    titles = [" ".join(text.split()) for text in paragraphs[group[0] : group[-1] + 1]]
    if len(titles) > _MOST_JOINED_TITLES:
        titles = titles[-1:]
    following = paragraphs[group[-1] + 1 : group[-1] + 2]
    if following and _is_subtitle(titles[-1], following[0]):
        titles.append(" ".join(following[0].split()))
    return " - ".join(titles)


def _is_subtitle(heading: str, text: str) -> bool:
    """Whether a short line under a bare number is its title: in capitals, or without a sentence's end."""
    bare = _is_bare(heading) or re.fullmatch(rf"(?:the\s+)?(?:{_PART})\s+{_NUMBER}\W*", heading, re.I)
    if not bare or len(text) > 80 or text.count("\n") > 1 or text == SCENE_BREAK or not text[:1].isupper():
        return False
    return text.isupper() or text[-1] not in ".,;:?!\u2019\u201d\"'\u2014-"
