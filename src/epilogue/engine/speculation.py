"""Drafts without a draft model: what followed when the text said the same before, tried where that has been right.

Prompt lookup (Saxena, 2023) with the longest match instead of a fixed one, found by a suffix automaton. A draft costs
nothing but time: every token is sampled from its own logits with its own random number, and a draft only decides
whether those logits are there already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from epilogue.engine.suffix_automaton import SuffixAutomaton

# Matches that cross from what texts share to what is a text's own are found up to this length.
_OVERLAP_TOKENS: Final = 64
# How often the next token is right before anything is known of a text, for matches of 1, 2, 3-4, 5-8, 9-16, 17-32 and
# more tokens: as in The Great Gatsby, which has none of more than 13, and guessed beyond.
_PRIOR = (0.1, 0.2, 0.3, 0.3, 0.4, 0.5, 0.5)
_PRIOR_TRIALS = 8
# Later trials count for more: about so many are remembered.
_MEMORY_TRIALS = 32


@dataclass(frozen=True)
class PassCost:
    """What drafted tokens add to a pass, as shares of a pass over one token: as measured on a CPU (docs/log.md)."""

    any_draft: float = 0.15
    each_token: float = 0.06


class Odds:
    """How likely the token that a match promises is to be chosen; counted at every token, drafted or not.

    So nothing is ever drafted to find out whether it pays.
    """

    def __init__(self) -> None:
        self._tries = [float(_PRIOR_TRIALS)] * len(_PRIOR)
        self._hits = [_PRIOR_TRIALS * share for share in _PRIOR]

    def copy(self) -> "Odds":
        """The same knowledge, to be added to apart."""
        twin = Odds()
        twin._tries, twin._hits = list(self._tries), list(self._hits)
        return twin

    def count(self, length: int, *, was_right: bool) -> None:
        """A match so long had promised a token."""
        kind = _kind(length)
        self._tries[kind] += 1 - self._tries[kind] / _MEMORY_TRIALS
        self._hits[kind] += was_right - self._hits[kind] / _MEMORY_TRIALS

    def of(self, length: int) -> float:
        """The share of promises of a match so long that were kept lately."""
        kind = _kind(length)
        return self._hits[kind] / self._tries[kind]

    def best_draft(self, length: int, most: int, cost: PassCost) -> int:
        """How many tokens to draft behind a match, so that the most passes are saved; 0 where none are."""
        best, best_gain, gain, right = 0, 0.0, -cost.any_draft, 1.0
        for drafted in range(1, most + 1):
            right *= self.of(length + drafted - 1)
            gain += right - cost.each_token
            if gain > best_gain:
                best, best_gain = drafted, gain
        return best


def _kind(length: int) -> int:
    return min((length - 1).bit_length(), len(_PRIOR) - 1)


@dataclass
class _Shared:
    """What forks of a text hold together; filled when the first of them drafts."""

    book: SuffixAutomaton | None = None


class Drafts:
    """Drafts for one text: from the book it shares with its forks, and from what it has said since.

    Nothing is built before the first draft. Then the book costs about 450 bytes a token and a microsecond or two,
    once for all forks, and is left as it is; a text that is cut is still offered its former words.
    """

    def __init__(self, cost: PassCost = PassCost()) -> None:
        self.cost = cost
        self._odds = Odds()
        self._shared = _Shared()
        self._start_anew()

    def _start_anew(self) -> None:
        self._book = self._own = SuffixAutomaton()
        self._in_book = (0, 0)
        self._promise: tuple[int, SuffixAutomaton, int] = (0, self._own, 0)
        self._num_tokens = 0
        self._is_whole = False
        """False before the first draft, and where an interruption fell into a change."""

    def fork(self) -> "Drafts":
        """For a text that begins alike, or for this one when it was cut."""
        twin = Drafts(self.cost)
        twin._odds, twin._shared = self._odds.copy(), self._shared
        return twin

    def after(self, ids: Sequence[int], *, most: int) -> list[int]:
        """Up to so many tokens that are worth trying behind a text.

        Args:
            ids: the text as it was last time, and what was written since: a token, as a rule.
            most: how many could be used.
        """
        if self._is_whole:
            self._follow(ids)
        else:
            self._begin(ids)
        length, source, place = self._promise
        count = self._odds.best_draft(length, most, self.cost) if length else 0
        return source.ids[place : place + count]

    def _follow(self, ids: Sequence[int]) -> None:
        """Take in new tokens, and whether the first of them was the promised one."""
        self._is_whole = False
        length, source, place = self._promise
        if length and len(ids) > self._num_tokens:
            self._odds.count(length, was_right=source.ids[place] == ids[self._num_tokens])
        self._take(ids[self._num_tokens :])
        self._num_tokens, self._is_whole = len(ids), True

    def _begin(self, ids: Sequence[int]) -> None:
        self._start_anew()
        book = self._shared.book
        # Of a text that has outgrown its book a new one is made: twice the length, so a token's share stays constant.
        if book is None or len(ids) > 2 * len(book.ids):
            book = self._shared.book = SuffixAutomaton(ids)
        shared = next((i for i, (a, b) in enumerate(zip(ids, book.ids, strict=False)) if a != b), None)
        shared = min(len(ids), len(book.ids)) if shared is None else shared
        self._book = book
        self._take(ids[max(0, shared - _OVERLAP_TOKENS) :])
        self._num_tokens, self._is_whole = len(ids), True

    def _take(self, new: Sequence[int]) -> None:
        for token_id in new:
            self._in_book = self._book.step(*self._in_book, token_id)
        self._own.extend(new)
        in_book, in_own = self._book.found(*self._in_book), self._own.found(*self._own.end)
        # What was said last is the better guess.
        self._promise = (
            (in_own[0], self._own, in_own[1]) if in_own[0] >= in_book[0] else (in_book[0], self._book, in_book[1])
        )
