"""What kind of book it is where no learning is needed: the library's own class, verse, and plays."""

import re
from collections import Counter

from epilogue.corpus.catalogue import CatalogueEntry

MOST_VERSE = 0.5
MOST_DRAMA = 0.5
_LEAST_TURNS = 10  # paragraphs that one speaker opens before its name counts as a speaker's
_SPEAKER = re.compile(
    r"[_\[(]*((?:[A-Z][\w'’&-]*\.?[ ,]*){1,4}?)[\])_]*(?:\s*[\[(][^\])]{0,80}[\])])?[.:](?:\s|$|--|—)"
)
_KINDS_OF_FICTION = r"(?:fiction|stories|novels?|tales|romances)"
_FICTION = re.compile(rf"\b{_KINDS_OF_FICTION}\b", re.I)
_CERTAINLY_FICTION = re.compile(rf"\b{_KINDS_OF_FICTION}$", re.I)  # "Dogs -- Fiction", "Autobiographical fiction"
_NOT_FICTION = re.compile(
    r"\b(?:poetry|poems|songs|drama|plays|criticism|letters|correspondence|(?:auto)?biography|essays|sermons|speeches"
    r"|diaries|bibliography|periodicals|dictionaries|encyclopedias|cooking|literary collections|non-?fiction"
    r"|study and teaching|textbooks)\b",
    re.I,
)
_LITERATURES = ("PA", "PG", "PH", "PJ", "PK", "PL", "PN", "PQ", "PR", "PS", "PT")
_JUVENILE_FICTION = "PZ"


def is_fiction_by_catalogue(entry: CatalogueEntry) -> bool | None:
    """What Library of Congress classes and subjects say; None where they leave it open or contradict each other.

    PZ is fiction for the young. Within the literatures (PR, PS, PQ and so on) the subjects decide. Any other class is
    no fiction unless a subject says so.
    """
    said = {_is_fiction_subject(subject) for subject in entry.subjects} - {None}
    classes = {name.upper()[:2] for name in entry.classes}
    if _JUVENILE_FICTION in classes and said != {False}:
        return True
    if said:
        return said.pop() if len(said) == 1 else None
    return False if classes and not classes.intersection(_LITERATURES) else None


def _is_fiction_subject(subject: str) -> bool | None:
    if _CERTAINLY_FICTION.search(subject):
        return True
    if _NOT_FICTION.search(subject):
        return False
    return True if _FICTION.search(subject) else None


def verse_share(text: str) -> float:
    """The share of characters in paragraphs of lines broken by hand, as verse is set."""
    broken = [paragraph for paragraph in text.split("\n\n") if "\n" in paragraph]
    verse = sum(len(p) for p in broken if len(p) < 70 * (p.count("\n") + 1))
    return verse / max(1, len(text))


def drama_share(text: str) -> float:
    """The share of paragraphs that open with a name that opens many, as speeches in a printed play do."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph]
    opened = [match[1].strip(" .").casefold() for p in paragraphs if (match := _SPEAKER.match(p[:120]))]
    turns = Counter(opened)
    return sum(count for count in turns.values() if count >= _LEAST_TURNS) / max(1, len(paragraphs))
