"""What flows between blocks, on disk: memory holds one sample of it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Activations:
    """The hidden states of some samples, in one file of fp32 rows.

    Args:
        path: the file; made by the first write.
        lengths: tokens of each sample.
        width: C.
    """

    def __init__(self, path: Path, lengths: Sequence[int], width: int) -> None:
        self._path, self._width = path, width
        self._starts = [0, *np.cumsum(lengths).tolist()]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, sample: int) -> Tensor:
        """x_TC of one sample, fp32: a copy."""
        start, end = self._starts[sample : sample + 2]
        rows = np.fromfile(self._path, np.float32, count=(end - start) * self._width, offset=4 * start * self._width)
        return torch.from_numpy(rows).view(end - start, self._width)

    def write(self, sample: int, x_TC: Tensor) -> None:
        """Put x_TC in a sample's place."""
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.seek(4 * self._starts[sample] * self._width)
            file.write(x_TC.float().contiguous().numpy().data.cast("B"))

    def flush(self) -> None:
        """Have the system put on the disk what it still holds back."""
        if len(self):
            descriptor = os.open(self._path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
