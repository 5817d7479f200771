"""Shards to batches: windows of any length, each inside one book, in an order that is a pure function of the seed."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epilogue.data.shards import Shards
from epilogue.errors import ShardError

_Integers = npt.NDArray[np.int64]


class WindowLoader:
    """Cuts every book into windows of ``num_tokens`` + 1 ids and deals them out in a shuffled order for ever.

    A book of M predicted tokens gives ceil(M / num_tokens) windows, which hold every one of them: the first begins with
    the book and the last ends with it. What they hold twice for that lies behind the first and before the last; in each
    epoch its share of either side is drawn anew, which shifts all cuts between. No window crosses into another book;
    books shorter than a window are passed over. The windows at an epoch's end that do not fill a batch are dropped; the
    order is shuffled, so they are others each time.

    All epochs have the same number of batches, so batch ``index`` depends on (shards, seed, index) alone and is found
    at once: resuming is starting at another index.

    Raises:
        ShardError: no book fills a window, or all windows do not fill a batch.
        ValueError: a size below 1 or a negative seed.
    """

    def __init__(self, shards: Shards, *, num_tokens: int, batch: int, seed: int = 0) -> None:
        if min(num_tokens, batch) < 1 or seed < 0:
            raise ValueError(f"num_tokens {num_tokens} and batch {batch} must be at least 1, seed {seed} at least 0")
        self.shards, self.num_tokens, self.batch, self.seed = shards, num_tokens, batch, seed
        self._documents = [d for d in shards.documents if d.num_tokens > num_tokens]
        if not self._documents:
            longest = max((d.num_tokens for d in shards.documents), default=0)
            raise ShardError(
                f"no book in {shards.folder} fills a window of {num_tokens + 1} tokens (the longest has {longest}); "
                "choose a shorter context"
            )
        self._last_starts: _Integers = np.array([d.num_tokens - num_tokens - 1 for d in self._documents])
        self._counts = -(-self._last_starts // num_tokens) + 1
        if self.num_windows < batch:
            raise ShardError(
                f"{shards.folder} has {self.num_windows} windows of {num_tokens} tokens, fewer than a batch of "
                f"{batch}; choose a smaller batch or a shorter context"
            )

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, the dropped ones included."""
        return int(self._counts.sum())

    @property
    def batches_per_epoch(self) -> int:
        """Batches after which every window but the dropped ones has been dealt out."""
        return self.num_windows // self.batch

    def batches(self, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids_BT, targets_BT), int64 on the CPU, from batch ``start`` on, without end."""
        epoch, index = divmod(start, self.batches_per_epoch)
        while True:
            documents, starts = self._epoch(epoch)
            for first in range(index * self.batch, self.batches_per_epoch * self.batch, self.batch):
                rows = slice(first, first + self.batch)
                yield self._collate(documents[rows], starts[rows])
            epoch, index = epoch + 1, 0

    def books_of(self, index: int) -> list[str]:
        """The ids of the books that a batch was cut from, each once, in the order of its rows."""
        epoch, place = divmod(index, self.batches_per_epoch)
        documents, _ = self._epoch(epoch)
        rows = documents[place * self.batch : (place + 1) * self.batch]
        return list(dict.fromkeys(self._documents[int(document)].id for document in rows))

    def _epoch(self, epoch: int) -> tuple[_Integers, _Integers]:
        """Every window of an epoch in its order: which book, and where in it."""
        generator = np.random.default_rng([self.seed, epoch])
        # The second window's start: at most a window's length behind the first, and far enough for the last to fit.
        least = self._last_starts - np.maximum(self._counts - 2, 0) * self.num_tokens
        seconds = generator.integers(np.minimum(least, self.num_tokens), self.num_tokens, endpoint=True)
        documents = np.repeat(np.arange(len(self._counts)), self._counts)
        places = np.arange(len(documents)) - np.repeat(self._counts.cumsum() - self._counts, self._counts)
        starts = np.where(places > 0, seconds[documents] + (places - 1) * self.num_tokens, 0)
        starts = np.minimum(starts, self._last_starts[documents])
        order = generator.permutation(len(documents))
        return documents[order], starts[order]

    def _collate(self, documents: _Integers, starts: _Integers) -> tuple[Tensor, Tensor]:
        rows: list[npt.NDArray[np.int64]] = [
            self.shards.tokens(self._documents[document])[start : start + self.num_tokens + 1].astype(np.int64)
            for document, start in zip(documents, starts, strict=True)
        ]
        ids = torch.from_numpy(np.stack(rows))
        return ids[:, :-1], ids[:, 1:]
