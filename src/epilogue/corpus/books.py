"""A book on its way through the selection: what is known of it, its text, and why it was dropped if it was."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from epilogue.corpus.shingles import Hashes, word_hashes


@dataclass(kw_only=True)
class SourceBook:
    """One book as a source gives it; the steps of the selection fill in the rest.

    Attributes:
        id: unique within its source.
        title: empty if unknown.
        author: empty if unknown.
        year: of first publication, where the source says so.
        gutenberg_id: its number at Project Gutenberg; empty if it is none of theirs.
        source: the file (and line or member) that it was read from.
        text: as read, later as cleaned; emptied when the book is dropped, so that a drop costs no disk.
        measures: what the steps found out: language, fiction score, shares that the quality filter looks at.
        dropped: the reason in one word, such as "language"; empty while the book is kept.
        why: the same in one clause with the figure that decided.
    """

    id: str
    source: str
    title: str = ""
    author: str = ""
    year: int | None = None
    gutenberg_id: str = ""
    text: str = ""
    measures: dict[str, Any] = field(default_factory=dict)
    dropped: str = ""
    why: str = ""
    excerpt: str = ""
    """The first words of what was dropped, for the report."""

    @cached_property
    def words(self) -> Hashes:
        """The hashes of the cleaned text's words; computed once."""
        return word_hashes(self.text)

    def drop(self, reason: str, why: str) -> None:
        """Take the book out of the selection; its first words stay for the report."""
        middle = len(self.text) // 2
        self.excerpt = " ".join(self.text[middle : middle + _EXCERPT].split())
        self.dropped, self.why, self.text = reason, why, ""
        self.__dict__.pop("words", None)


_EXCERPT = 240  # characters, from the middle: beginnings are title pages
