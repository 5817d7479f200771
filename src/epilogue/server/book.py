"""A book of a server: one text under one id, in all the forms it takes as it is written on."""

from collections.abc import Sequence as Several
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime

from epilogue.engine import PAGE_TOKENS, Kept, Sequence
from epilogue.engine.prefixes import common_tokens


@dataclass(frozen=True)
class BookRow:
    """What there is to say of a book."""

    id: str
    title: str
    num_tokens: int
    num_bytes: int
    """Of its latest form's pages; other books may share some. 0 if it is not in memory."""
    is_in_memory: bool
    saving_id: str
    """What the state is called that is being written; empty if none is."""
    kept: Kept | None
    """Its state on disk, if there is one."""
    used_at: datetime

    @classmethod
    def of_state(cls, kept: Kept) -> "BookRow":
        """A book that is on disk alone."""
        header = kept.header
        title, num_tokens = (header.title, header.num_tokens) if header else ("", 0)
        return cls(kept.id, title, num_tokens, 0, is_in_memory=False, saving_id="", kept=kept, used_at=kept.used_at)


@dataclass(eq=False)
class Book:
    """A text and its forms."""

    id: str
    title: str = ""
    ids: Several[int] = ()
    """Of its latest form."""
    forms: list[Sequence] = field(default_factory=list)
    """Those that are open and in no request, the latest last."""
    kept: Kept | None = None
    kept_ids: Several[int] = ()
    """The text of its state on disk."""
    saving: "Future[Kept] | None" = None
    saving_id: str = ""
    used_at: datetime = field(default_factory=datetime.now)

    def is_form(self, ids: Several[int]) -> int:
        """How many tokens a text has in common with this book, if that is most of the book; else 0."""
        if self.ids[:PAGE_TOKENS] != ids[: min(len(self.ids), PAGE_TOKENS)]:
            return 0
        common = common_tokens(ids, self.ids)
        return common if 2 * common > len(self.ids) else 0

    def num_new(self, text: Sequence) -> int:
        """Tokens of a form that its state was not written with."""
        known = text.table.num_tokens
        return known - min(known, common_tokens(text.ids, self.kept_ids))

    def num_unsaved(self, text: Sequence) -> int:
        """Tokens that would have to be read again if this form were forgotten."""
        if self.kept is not None and not self.kept.path.exists():  # somebody has removed it
            self.kept, self.kept_ids = None, ()
        return self.num_new(text)
