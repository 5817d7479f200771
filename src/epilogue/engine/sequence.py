"""Sequence: one growing text and everything that is known about it."""

from collections.abc import Iterable
from operator import index

from torch import Tensor

from epilogue.engine.speculation import Drafts
from epilogue.model import PageTable, Reads


class Sequence:
    """A text, its pages of keys and values, and what the model expects next.

    Made by an ``Engine`` and grown by it alone. At every moment, also after an interruption:

    - ``ids`` is the whole text, read and written;
    - ``table`` holds (or has evicted) its first ``table.num_tokens`` tokens, and the rest, ``num_pending``, go through
      the model before the next token is chosen;
    - ``logits_V`` is what the model expects after the last token, or None while that is not known;
    - ``ahead`` is what it would expect if drafted tokens came next: their keys and values lie behind the table's, where
      nothing counts them until they are chosen.

    Its pages go back when it is closed (``Engine.close``) or forgotten.
    """

    def __init__(self, ids: Iterable[int], table: PageTable, reads: Reads) -> None:
        self.ids = list(ids)
        self.table = table
        self.reads = reads
        """How much of its past was looked at."""
        self.logits_V: Tensor | None = None
        self.drafts = Drafts()
        self.draft: list[int] = []
        """Tokens to try behind the text in the next pass; whatever they are, they change no token of it."""
        self.ahead: list[tuple[int, Tensor]] = []
        """Drafted tokens and the logits_V behind each."""
        self.num_drafted = 0
        """Drafted tokens that went through the model."""
        self.num_accepted = 0
        """Of these, those that were chosen."""
        self.seed: int | None = None
        """The seed in effect in the last ``Engine.stream``."""
        self.is_closed = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the text."""
        return len(self.ids)

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen yet."""
        return self.num_tokens - self.table.num_tokens

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens for the engine to see to. What was expected next is forgotten first: it may come to no more."""
        self.forget_next()
        self.ids.extend(ids)

    def forget_next(self) -> None:
        """What was expected next, and tried ahead, holds no more."""
        self.draft, self.ahead = [], []
        self.logits_V = None

    def set_aside(self) -> None:
        """Keep only what other texts and a state on disk can have of this one: ids, pages, and what comes next.

        A row of logits is one of a whole pass's, which it keeps; drafts take some 450 bytes a token. If this text is
        written on all the same, its drafts begin anew.
        """
        self.draft, self.ahead, self.drafts = [], [], Drafts()
        if self.logits_V is not None:
            self.logits_V = self.logits_V.clone()

    def check_open(self) -> None:
        """Refuse to go on with a closed text.

        Raises:
            ValueError: it was closed.
        """
        if self.is_closed:
            raise ValueError("this text was closed and its pages are gone; open the book again")


def checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The same, as a list of whole numbers.

    Raises:
        ValueError: one is outside the vocabulary.
    """
    text = [index(token_id) for token_id in ids]
    for position, token_id in enumerate(text):
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"id {token_id} at position {position} is outside the vocabulary of {vocab_size}")
    return text
