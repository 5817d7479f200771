"""The number formats of ggml that are read and written here.

F32, F16 and BF16 are plain; the others pack 32 or 256 weights of a row with their scales. The packing itself is done by
ggml's own ``gguf`` package, some rows at a time.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epilogue.checkpoint.dtypes import convert
from epilogue.errors import CheckpointError

_CHUNK_WEIGHTS = 1 << 22
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class TensorType:
    """One format: so many weights of a row become so many bytes."""

    name: str
    number: int
    """ggml's."""
    block_weights: int
    block_bytes: int
    dtype: torch.dtype | None = None
    """Of a plain format; None if weights are packed."""

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, whose rows are whole blocks."""
        return math.prod(shape) // self.block_weights * self.block_bytes


_PLAIN = (
    TensorType("F32", 0, 1, 4, torch.float32),
    TensorType("F16", 1, 1, 2, torch.float16),
    TensorType("BF16", 30, 1, 2, torch.bfloat16),
)
_PACKED = (
    TensorType("Q4_0", 2, 32, 18),
    TensorType("Q4_1", 3, 32, 20),
    TensorType("Q5_0", 6, 32, 22),
    TensorType("Q5_1", 7, 32, 24),
    TensorType("Q8_0", 8, 32, 34),
    TensorType("Q2_K", 10, 256, 84),
    TensorType("Q3_K", 11, 256, 110),
    TensorType("Q4_K", 12, 256, 144),
    TensorType("Q5_K", 13, 256, 176),
    TensorType("Q6_K", 14, 256, 210),
)
TENSOR_TYPES: Mapping[int, TensorType] = {type_.number: type_ for type_ in (*_PLAIN, *_PACKED)}
"""By ggml's number."""
TYPE_NAMED: Mapping[str, TensorType] = {type_.name: type_ for type_ in TENSOR_TYPES.values()}
"""By ggml's name."""


def gguf_package() -> ModuleType:
    """ggml's Python package, which an extra of this one installs.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            "writing GGUF and reading packed weights needs ggml's package, which is not installed; "
            "run `pip install 'gguf>=0.17'`"
        ) from error
    return gguf


def decode(raw: Bytes, type_: TensorType, shape: tuple[int, ...]) -> Tensor:
    """The values: a view of the bytes in a plain format, float32 in a packed one, as ggml unpacks it."""
    if type_.dtype is not None:
        # numpy has no bfloat16, so all three go by way of integers of their width.
        width = torch.int32 if type_.block_bytes == 4 else torch.int16
        return torch.from_numpy(raw).view(width).view(type_.dtype).view(shape)
    gguf = gguf_package()
    values = torch.empty(shape)
    packed = raw.reshape(-1, type_.num_bytes(shape[-1:]))
    for rows in _chunks(packed.shape[0], shape[-1]):
        unpacked = gguf.quants.dequantize(packed[rows], gguf.GGMLQuantizationType(type_.number))
        values.view(-1, shape[-1])[rows] = torch.from_numpy(unpacked)
    return values


def encode(name: str, tensor: Tensor, type_: TensorType) -> Iterator[Bytes]:
    """A tensor's bytes in order, some rows at a time.

    Raises:
        CheckpointError: a value is too large for the format.
    """
    table = tensor.reshape(-1, tensor.shape[-1])
    for rows in _chunks(*table.shape):
        if type_.dtype is not None:
            values = convert(name, table[rows], dtype=type_.dtype, device="cpu")
            yield values.view(torch.uint8).numpy()
        else:
            gguf = gguf_package()
            values = convert(name, table[rows], dtype=torch.float32, device="cpu")
            yield gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType(type_.number))


def _chunks(num_rows: int, row_weights: int) -> Iterator[slice]:
    step = max(1, _CHUNK_WEIGHTS // row_weights)
    return (slice(start, start + step) for start in range(0, num_rows, step))
