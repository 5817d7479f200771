"""Shards to batches: windows of any length, each inside one book, in an order that is a pure function of the seed."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epilogue.data.shards import ShardDocument, Shards
from epilogue.errors import ShardError

Window = tuple[ShardDocument, int]


class WindowLoader:
    """Cuts every book into windows of ``num_tokens`` + 1 ids and deals them out in a shuffled order for ever.

    In each epoch the cuts start at another offset, so that no border is learned; what is left at a book's end is taken by
    one more window that ends with the book. No window crosses into another book; books shorter than a window are passed
    over. Batch ``index`` depends on (shards, seed, index) alone, so that resuming is starting at another index.
    """

    def __init__(self, shards: Shards, *, num_tokens: int, batch: int, seed: int = 0) -> None:
        self.shards, self.num_tokens, self.batch, self.seed = shards, num_tokens, batch, seed
        self._documents = [d for d in shards.documents if d.num_tokens > num_tokens]
        if not self._documents:
            longest = max((d.num_tokens for d in shards.documents), default=0)
            raise ShardError(
                f"no book in {shards.folder} fills a window of {num_tokens + 1} tokens (the longest has {longest}); "
                "choose a shorter context"
            )

    def batches(self, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids_BT, targets_BT), int64 on the CPU, from batch ``start`` on, without end."""
        index = start
        epoch, first = 0, 0
        windows = self._epoch(epoch)
        while True:
            while (index + 1) * self.batch > first + len(windows):
                epoch, first = epoch + 1, first + len(windows) - len(windows) % self.batch
                windows = self._epoch(epoch)
                if len(windows) < self.batch:
                    raise ShardError(
                        f"{self.shards.folder} has {len(windows)} windows of {self.num_tokens} tokens, fewer than a "
                        f"batch of {self.batch}; choose a smaller batch or a shorter context"
                    )
            place = index * self.batch - first
            yield self._collate(windows[place : place + self.batch])
            index += 1

    def _epoch(self, epoch: int) -> list[Window]:
        generator = np.random.default_rng([self.seed, epoch])
        windows: list[Window] = []
        for document in self._documents:
            last = document.num_tokens - self.num_tokens - 1
            offset = int(generator.integers(min(self.num_tokens, last + 1)))
            starts = list(range(offset, last + 1, self.num_tokens))
            windows += [(document, start) for start in starts]
            if starts[-1] < last:
                windows.append((document, last))
        order = generator.permutation(len(windows))
        return [windows[i] for i in order]

    def _collate(self, windows: list[Window]) -> tuple[Tensor, Tensor]:
        rows: list[npt.NDArray[np.int64]] = [
            self.shards.tokens(document)[start : start + self.num_tokens + 1].astype(np.int64)
            for document, start in windows
        ]
        ids = torch.from_numpy(np.stack(rows))
        return ids[:, :-1], ids[:, 1:]
