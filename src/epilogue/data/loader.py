"""Shards to batches: rows of any length in an order that is a pure function of the seed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epilogue.data.packing import Packing, Piece
from epilogue.data.permutation import Integers, permute
from epilogue.data.shards import Shards
from epilogue.errors import ShardError

NOT_PREDICTED = -100
"""The target where a row has nothing to predict: what PyTorch's losses leave out."""
_ORDER, _CUTS = 0, 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's rows of a batch, and what the whole batch holds."""

    ids_BT: Tensor
    """int64 on the CPU."""
    targets_BT: Tensor
    """The next ids, int64; ``NOT_PREDICTED`` where a row is not filled."""
    document_start_BT: Tensor | None
    """For every token the position in its row where its piece of a book begins, int64; None if all begin at 0."""
    num_targets: int
    """Tokens predicted, of all ranks."""
    num_pairs: int
    """(query, key) pairs that attention sees, of all ranks: the arithmetic of packed rows."""

    def split(self, num_rows: int) -> list["Batch"]:
        """Micro-batches of so many rows, the last perhaps of fewer; the counts stay those of the whole."""
        starts_BT = self.document_start_BT
        parts = []
        for first in range(0, len(self.ids_BT), num_rows):
            rows = slice(first, first + num_rows)
            is_packed = starts_BT is not None and bool(starts_BT[rows].any())
            parts.append(
                Batch(
                    ids_BT=self.ids_BT[rows],
                    targets_BT=self.targets_BT[rows],
                    document_start_BT=starts_BT[rows] if starts_BT is not None and is_packed else None,
                    num_targets=self.num_targets,
                    num_pairs=self.num_pairs,
                )
            )
        return parts


class WindowLoader:
    """Deals out rows of ``num_tokens`` predicted tokens in a shuffled order, epoch after epoch, for ever.

    In an epoch every token but each book's first is predicted exactly once (``data.packing`` has how books are cut and
    packed). Batch ``index`` is rows ``index * batch`` and on of that endless sequence, so a batch may hold the end of
    one epoch and the beginning of the next. It depends on (shards, num_tokens, batch, seed, index) alone and is found
    at once: the state of a loader is the index of its next batch, and resuming is starting there.

    Rank r of n gets the r-th of n equal parts of every batch's rows; together they are what one process gets. May be
    pickled and indexed (``loader[index]``), so worker processes of any kind can make batches ahead.

    Raises:
        ShardError: no book has two tokens.
        ValueError: a size below 1, a negative seed, a rank outside its range, or ranks that do not divide a batch.
    """

    def __init__(
        self, shards: Shards, *, num_tokens: int, batch: int, seed: int = 0, rank: int = 0, num_ranks: int = 1
    ) -> None:
        if min(num_tokens, batch) < 1 or seed < 0:
            raise ValueError(f"num_tokens {num_tokens} and batch {batch} must be at least 1, seed {seed} at least 0")
        if not 0 <= rank < num_ranks or batch % num_ranks:
            raise ValueError(f"rank {rank} of {num_ranks} cannot have an equal part of {batch} rows")
        self.shards, self.num_tokens, self.batch, self.seed = shards, num_tokens, batch, seed
        self._rank, self._num_ranks = rank, num_ranks
        self._packing = Packing(np.array([d.num_tokens for d in shards.documents], np.int64), num_tokens)
        if not self.num_rows:
            raise ShardError(f"no book in {shards.folder} has a token to predict; prepare shards of longer books")

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self._packing.num_rows

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch, at least 1."""
        return max(1, self.num_rows // self.batch)

    def batches(self, *, start: int = 0) -> Iterator[Batch]:
        """From batch ``start`` on, without end."""
        while True:
            yield self[start]
            start += 1

    def __getitem__(self, index: int) -> Batch:
        rows = self._rows(np.arange(index * self.batch, (index + 1) * self.batch))
        lengths = [piece.num_tokens for row in rows for piece in row]
        share = self.batch // self._num_ranks
        filled = [self._fill(row) for row in rows[self._rank * share : (self._rank + 1) * share]]
        ids_BT, targets_BT, starts_BT = (torch.from_numpy(np.stack(each)) for each in zip(*filled, strict=True))
        return Batch(
            ids_BT=ids_BT,
            targets_BT=targets_BT,
            document_start_BT=starts_BT if starts_BT.any() else None,
            num_targets=sum(lengths),
            num_pairs=sum(length * (length + 1) // 2 for length in lengths),
        )

    def books_of(self, index: int) -> list[str]:
        """The ids of the books that a batch was cut from, each once, in the order of its rows."""
        rows = self._rows(np.arange(index * self.batch, (index + 1) * self.batch))
        return list(dict.fromkeys(self.shards.documents[piece.document].id for row in rows for piece in row))

    def _rows(self, numbers: Integers) -> list[list[Piece]]:
        """What lies in these rows of the endless sequence, which rise."""
        rows: list[list[Piece]] = []
        epochs, places = np.divmod(numbers, self.num_rows)
        for epoch in map(int, np.unique(epochs)):
            order = permute(places[epochs == epoch], self.num_rows, key=(self.seed, epoch, _ORDER))
            rows += [self._packing.row(int(row), key=(self.seed, epoch, _CUTS)) for row in order]
        return rows

    def _fill(self, pieces: list[Piece]) -> tuple[npt.NDArray[np.int64], ...]:
        """Ids, targets and document starts of one row; what is left over is a document of its own."""
        ids = np.full(self.num_tokens, self.shards.tokenizer.eos_id, np.int64)
        targets = np.full(self.num_tokens, NOT_PREDICTED, np.int64)
        starts = np.zeros(self.num_tokens, np.int64)
        place = 0
        for piece in pieces:
            tokens = self.shards.tokens(self.shards.documents[piece.document])
            there = slice(place, place + piece.num_tokens)
            ids[there] = tokens[piece.start : piece.start + piece.num_tokens]
            targets[there] = tokens[piece.start + 1 : piece.start + 1 + piece.num_tokens]
            starts[there] = place
            place += piece.num_tokens
        starts[place:] = place
        return ids, targets, starts
