"""GBNF, the grammar notation of llama.cpp and KoboldCpp, to the Lark dialect that llguidance reads.

A GBNF grammar has no lexer: rules cut the text wherever they like. llguidance has one, whose terminals take as much as
they can, so that `word word` over `[a-z]+` would match nothing. Hence every character becomes a terminal of its own,
and everything else a rule; what llguidance's converter makes of the same grammar accepts less.
"""

import re
from collections.abc import Iterator

from epilogue.errors import RequestError

MOST_CHARACTERS = 100_000
MOST_RULES = 1000
"""llguidance follows rules into each other on the stack of its thread."""
_LAST_CODE_POINT = 0x10FFFF
_PARTS = re.compile(
    r"""(?P<space>\s+|\#[^\r\n]*)
      | (?P<defines>::=)
      | (?P<name>[A-Za-z0-9_-]+)
      | "(?P<text>(?:[^"\\]|\\.)*)"
      | \[(?P<set>(?:[^\]\\]|\\.)*)\]
      | (?P<times>[*+?]|\{\s*\d{1,6}\s*(?:,\s*(?:\d{1,6})?\s*)?\})
      | (?P<mark>[().|])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([^xuU0-9A-Za-z]|[nrt]))|([^\\])", re.DOTALL
)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}

_Part = tuple[str, str, int]
"""Kind, content and line."""


def lark_of_gbnf(grammar: str) -> str:
    """The grammar in llguidance's Lark, its start named ``start``.

    Raises:
        RequestError: it is too long, is no GBNF, or names a rule that it does not have.
    """
    if len(grammar) > MOST_CHARACTERS:
        raise _error(f"it has {len(grammar):,} characters, {MOST_CHARACTERS:,} are possible")
    parts = list(_parts(grammar))
    starts = [i for i in range(len(parts) - 1) if parts[i][0] == "name" and parts[i + 1][0] == "defines"]
    if not starts or starts[0] > 0:
        raise _error('it must begin with a rule, as in: root ::= "yes" | "no"')
    names = {parts[start][1]: f"r{i}" for i, start in enumerate(starts)}
    if len(names) < len(starts) or len(names) > MOST_RULES:
        raise _error(f"it has {len(starts):,} rules, and {MOST_RULES:,} of different names are possible")
    if "root" not in names:
        raise _error("it has no rule named root, which a text begins with")
    rules = [f"start: {names['root']}"]
    for start, stop in zip(starts, [*starts[1:], len(parts)], strict=True):
        name = names[parts[start][1]]
        rules.append(f"{name}: {_unwound(_split(_body(parts[start + 2 : stop], names)), name)}")
    return "\n".join(rules) + "\n"


def _parts(grammar: str) -> Iterator[_Part]:
    place, line = 0, 1
    while place < len(grammar):
        found = _PARTS.match(grammar, place)
        if found is None:
            raise _error(f"{grammar[place : place + 20]!r} cannot stand in line {line}")
        kind = found.lastgroup or ""
        if kind != "space":
            yield kind, found[kind], line
        line += found[0].count("\n")
        place = found.end()


def _body(parts: list[_Part], names: dict[str, str]) -> list[str]:
    """One rule's items, "|" among them."""
    levels: list[list[str]] = [[]]
    can_repeat = False
    for kind, content, line in parts:
        if kind == "times":
            if not can_repeat:
                raise _error(f"nothing stands before {content} in line {line}")
            levels[-1][-1] = f"({levels[-1][-1]}){_times(content)}"
        elif content == "(" and kind == "mark":
            levels.append([])
        elif content == ")" and kind == "mark":
            if len(levels) == 1:
                raise _error(f"the ) in line {line} closes nothing")
            group = _joined(_split(levels.pop()))
            levels[-1].append(f"({group})")
        else:
            levels[-1].append(_item(kind, content, line, names))
        can_repeat = levels[-1][-1:] not in ([], ["|"])
    if len(levels) > 1:
        raise _error(f"a ( that stands before line {parts[-1][2] + 1} is never closed")
    return levels[0]


def _split(items: list[str]) -> list[list[str]]:
    """Alternatives, of which some may be empty."""
    alternatives: list[list[str]] = [[]]
    for item in items:
        if item == "|":
            alternatives.append([])
        else:
            alternatives[-1].append(item)
    return alternatives


def _joined(alternatives: list[list[str]]) -> str:
    return " | ".join(" ".join(items) or '""' for items in alternatives)


def _unwound(alternatives: list[list[str]], name: str) -> str:
    """R = a R | b as a* b, which is the same and saves an Earley parser a row of items for every character before."""
    again = [items[:-1] for items in alternatives if len(items) > 1 and items[-1] == name]
    others = [items for items in alternatives if len(items) < 2 or items[-1] != name]
    return f"({_joined(again)})* ({_joined(others)})" if again and others else _joined(alternatives)


def _item(kind: str, content: str, line: int, names: dict[str, str]) -> str:
    if kind == "name":
        if content not in names:
            raise _error(f"line {line} names {content}, and there is no such rule")
        return names[content]
    if kind == "text":
        return " ".join(f"/[{_written(code)}]/" for code in _code_points(content, line)) or '""'
    if kind == "set":
        return _set(content, line)
    if kind == "mark":
        return "|" if content == "|" else f"/[{_written(0)}-{_written(_LAST_CODE_POINT)}]/"
    raise _error(f"::= in line {line} stands behind no rule's name")


def _set(content: str, line: int) -> str:
    is_negated = content.startswith("^")
    place, ranges = int(is_negated), list[str]()
    while place < len(content):
        first, place = _code_point(content, place, line)
        last = first
        if content[place : place + 1] == "-" and place + 1 < len(content):
            last, place = _code_point(content, place + 1, line)
        if last < first:
            raise _error(f"[{content}] in line {line} has a range that ends before it begins")
        ranges.append(f"{_written(first)}-{_written(last)}")
    if not ranges:
        raise _error(f"[{content}] in line {line} has no character in it")
    return f"/[{'^' * is_negated}{''.join(ranges)}]/"


def _times(content: str) -> str:
    numbers = re.findall(r"\d+", content)
    if not numbers:
        return content
    last = "" if "," in content and len(numbers) == 1 else numbers[-1]
    return f"{{{numbers[0]},{last}}}"


def _code_points(content: str, line: int) -> Iterator[int]:
    place = 0
    while place < len(content):
        code, place = _code_point(content, place, line)
        yield code


def _code_point(content: str, place: int, line: int) -> tuple[int, int]:
    """A character's code, and where the next one begins."""
    found = _CHARACTER.match(content, place)
    if found is None:
        raise _error(f"{content[place : place + 10]!r} in line {line} is no escape that GBNF has")
    *codes, escaped, plain = found.groups()
    written = next((code for code in codes if code), None)
    code = int(written, 16) if written else ord(plain or _CONTROLS.get(escaped, escaped))
    if code > _LAST_CODE_POINT or 0xD800 <= code < 0xE000:
        raise _error(f"U+{code:X} in line {line} is no character")
    return code, found.end()


def _written(code: int) -> str:
    return f"\\x{{{code:x}}}"


def _error(reason: str) -> RequestError:
    return RequestError(f"the grammar cannot be used: {reason}; see llama.cpp's guide to GBNF")
