"""Books of any length in rows of one length: full windows, and what is left of each book packed best-fit.

A book of M predicted tokens gives M // W windows of W and one remainder of M % W tokens. Remainders share rows: the
longest first, each goes into the row with the least room that still holds it, so rows lose next to nothing. How many
rows there are and what they hold by length is the same in every epoch; where in its book the remainder is cut out
(before, between or behind the full windows) is drawn anew, which shifts the windows.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from epilogue.data.permutation import Integers, draw


@dataclass(frozen=True)
class Piece:
    """A part of one book."""

    document: int
    start: int
    """The first of its tokens; the first predicted one is the next."""
    num_tokens: int
    """Tokens predicted."""


class Packing:
    """Rows of ``num_tokens`` predicted tokens that together predict every token but each book's first, once.

    Rows are numbered from 0, the full windows first. Memory: some numbers a book.

    Args:
        lengths: tokens of every book; those of fewer than 2 predict nothing.
        num_tokens: of a row.
    """

    def __init__(self, lengths: Integers, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        predicted = np.maximum(lengths - 1, 0)
        self._full, self._rest = predicted // num_tokens, predicted % num_tokens
        self._full_before = np.concatenate([[0], self._full.cumsum()])
        self._packed = _best_fit(self._rest, num_tokens)
        self.num_rows = int(self._full_before[-1]) + len(self._packed)

    def row(self, number: int, *, key: tuple[int, ...]) -> list[Piece]:
        """The pieces in a row, in the epoch that ``key`` chooses."""
        num_full = int(self._full_before[-1])
        if number >= num_full:
            documents = np.array(self._packed[number - num_full])
            cuts = self._cuts(documents, key) * self.num_tokens
            lengths = self._rest[documents]
            return [Piece(*map(int, piece)) for piece in zip(documents, cuts, lengths, strict=True)]
        document = int(np.searchsorted(self._full_before, number, side="right")) - 1
        window = number - int(self._full_before[document])
        is_behind = window >= int(self._cuts(np.array([document]), key)[0])
        start = window * self.num_tokens + (int(self._rest[document]) if is_behind else 0)
        return [Piece(document, start, self.num_tokens)]

    def _cuts(self, documents: Integers, key: tuple[int, ...]) -> Integers:
        """How many full windows come before the remainder of each document."""
        return draw(documents, self._full[documents] + 1, key=key)


def _best_fit(lengths: Integers, room: int) -> list[list[int]]:
    """Best-fit decreasing: the numbers of the items of each row; items of length 0 are left out.

    The rooms that some row has left are the bits of one whole number, so the least that suffices is found at once.
    """
    rows: list[list[int]] = []
    rows_of_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms = 0
    for item in np.argsort(-lengths, kind="stable"):
        length = int(lengths[item])
        if not length:
            break
        if enough := rooms >> length:
            left = length + (enough & -enough).bit_length() - 1
            row = rows_of_room[left].pop()
            if not rows_of_room[left]:
                rooms ^= 1 << left
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(int(item))
        rows_of_room[left - length].append(row)
        rooms |= 1 << (left - length)
    return rows
