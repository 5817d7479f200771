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
_FICTION = re.compile(r"\b(?:fiction|stories|novels?|tales|romances|fairy tales|ghost stories|short stories)\b", re.I)
_NOT_FICTION = re.compile(
    r"\b(?:poetry|poems|drama|plays|criticism|letters|correspondence|biography|autobiography|essays|sermons|speeches"
    r"|diaries|bibliography|periodicals|dictionaries|cooking|history and criticism|literary collections|songs|non-?fiction"
    r"|study and teaching|textbooks|encyclopedias)\b",
    re.I,
)
_LITERATURE = ("PA", "PG", "PH", "PJ", "PK", "PL", "PN", "PQ", "PR", "PS", "PT")
_JUVENILE_FICTION = "PZ"


def is_fiction_by_catalogue(entry: CatalogueEntry) -> bool | None:
    """What Library of Congress classes and subjects say; None where they leave it open.

    PZ is fiction for the young. Within the literatures (PR, PS, PQ and so on) the subjects decide; where they name neither
    a kind of fiction nor another kind, nothing is decided. Any other class is no fiction unless a subject says so.
    """
    subjects = [part for subject in entry.subjects for part in (subject, entry.title) if part]
    says_other = any(_NOT_FICTION.search(subject) for subject in entry.subjects)
    says_fiction = any(_FICTION.search(subject) and not _NOT_FICTION.search(subject) for subject in entry.subjects)
    classes = [name.upper()[:2] for name in entry.classes]
    if says_fiction:
        return True if not says_other or _JUVENILE_FICTION in classes else None
    if says_other:
        return False
    if _JUVENILE_FICTION in classes:
        return True
    if any(name in _LITERATURE for name in classes) or not (classes or subjects):
        return None
    return False if classes else None


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
