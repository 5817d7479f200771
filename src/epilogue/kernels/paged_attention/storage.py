"""How keys and values lie in pages: four storages, and the way from numbers to codes and back.

int8 is symmetric, one scale a token and head. int4 has a scale and a zero point a token and head, is taken after the
rotation of ``rotation.py`` and lies two codes a byte: element j in the low nibble of byte j, element j + D/2 in its
high one. Codes are signed, -8..7, so that sums of codes do not cancel against sums of zero points.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.rotation import rotate

PAGE_TOKENS = 128
"""Tokens of a page."""

Storage = Literal["float32", "bfloat16", "int8", "int4"]
_DTYPES: dict[Storage, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
}
"""In the order of their numbers in C++ (native/kernels.hpp)."""
# A scale is never below the smallest normal number, nor a zero point beyond 2^20, where fp32 still tells codes apart.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_SMALLEST_STEP = 2.0**-20


class Rows(NamedTuple):
    """Tokens in a storage: codes [..., D] (int4: [..., D/2]), and what turns them back into numbers."""

    data: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None


@dataclass(frozen=True)
class PageTensors:
    """A pool of pages, each the keys (or the values) of PAGE_TOKENS consecutive tokens of one head.

    Rows that were never written hold anything, NaN included; whoever reads a page knows how many of its rows count.
    """

    data_PWD: Tensor
    """float32, bfloat16 or int8; for int4 packed uint8 with half the width."""
    scale_PW: Tensor | None = None
    """fp32, for int8 and int4."""
    zero_PW: Tensor | None = None
    """fp32, for int4: the code, not a whole number, that stands for 0.0."""

    @property
    def storage(self) -> Storage:
        """What the codes are, told by their dtype."""
        return next(storage for storage, dtype in _DTYPES.items() if dtype == self.data_PWD.dtype)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.data_PWD.shape[2] * (2 if self.storage == "int4" else 1)

    def addresses(self) -> tuple[int, int, int, int, int]:
        """For C++: where codes, scales and zero points are (0: nowhere), how many pages, the storage's number.

        Raises:
            ValueError: they are not dense, or not on the CPU.
        """
        for part in (self.data_PWD, self.scale_PW, self.zero_PW):
            if part is not None and (part.device.type != "cpu" or not part.is_contiguous()):
                raise ValueError(f"wanted dense pages on the CPU, got strides {part.stride()} on {part.device}")
        data, scale, zero = (0 if x is None else x.data_ptr() for x in (self.data_PWD, self.scale_PW, self.zero_PW))
        return data, scale, zero, len(self.data_PWD), tuple(_DTYPES).index(self.storage)

    def rows(self, page_ids: Tensor) -> Rows:
        """The listed pages as they are stored, [..., W, D] for ids [...]: a copy."""
        flat = page_ids.flatten()
        parts = (None if x is None else x.index_select(0, flat) for x in (self.data_PWD, self.scale_PW, self.zero_PW))
        return Rows(*(None if x is None else x.unflatten(0, page_ids.shape) for x in parts))  # type: ignore[arg-type]


def allocate_pages(num_pages: int, head_dim: int, storage: Storage, device: torch.device | str = "cpu") -> PageTensors:
    """Room for pages, not filled: on the CPU the system hands out the memory when a page is first written.

    Raises:
        ValueError: an odd head_dim for int4.
    """
    shape = (num_pages, PAGE_TOKENS)
    width = _stored_width(head_dim, storage)
    data = torch.empty(*shape, width, dtype=_DTYPES[storage], device=device)
    scale, zero = (
        torch.empty(shape, device=device) if storage in kinds else None for kinds in (("int8", "int4"), ("int4",))
    )
    return PageTensors(data, scale, zero)


def bytes_per_page(head_dim: int, storage: Storage) -> int:
    """Bytes of one page of keys; its values take as many again."""
    per_token = _stored_width(head_dim, storage) * _DTYPES[storage].itemsize
    return PAGE_TOKENS * (per_token + {"int8": 4, "int4": 8}.get(storage, 0))


def quantize(x: Tensor, storage: Storage) -> Rows:
    """Codes of numbers [..., D], scales and zero points [...]; every row is a token of one head.

    Zeros and constant rows come back as they were (int4: constant after the rotation), to within fp32's rounding. A row
    with an infinity or a NaN comes back as NaN throughout: to refuse it would mean to wait for the device.

    Raises:
        ValueError: an odd width for int4.
    """
    _stored_width(x.shape[-1], storage)
    if storage == "int8":
        return _quantize_int8(x.float())
    return _quantize_int4(rotate(x).float()) if storage == "int4" else Rows(x.to(_DTYPES[storage]))


def dequantize(rows: Rows, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers [..., D] of ``dtype`` (fp32 or fp64; bf16 for bf16 rows), in the basis they were given in."""
    if rows.zero is not None:
        codes = torch.cat(unpack(rows.data), dim=-1).to(dtype)
        return rotate((codes - rows.zero[..., None].to(dtype)) * _column(rows.scale, dtype))
    return rows.data.to(dtype) if rows.scale is None else rows.data.to(dtype) * _column(rows.scale, dtype)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -8..7, as int8, of the first and of the second half of the width."""
    signed = packed.view(torch.int8)
    return (signed << 4) >> 4, signed >> 4


def _quantize_int8(x: Tensor) -> Rows:
    scale = (_largest(x) / 127).clamp(min=_SMALLEST_SCALE)
    codes = (x / scale[..., None]).round_().clamp_(-127, 127)
    return Rows(codes.nan_to_num_(0).to(torch.int8), scale)


def _quantize_int4(x: Tensor) -> Rows:
    low, high, largest = x.amin(-1), x.amax(-1), _largest(x)
    scale = torch.maximum((high - low) / 15, largest * _SMALLEST_STEP).clamp(min=_SMALLEST_SCALE)
    codes = ((x - low[..., None]) / scale[..., None]).round_().sub_(8).clamp_(-8, 7)
    first, second = codes.nan_to_num_(0).to(torch.int8).chunk(2, dim=-1)
    return Rows((first & 15 | second << 4).view(torch.uint8), scale, -low / scale - 8)


def _largest(x: Tensor) -> Tensor:
    """Largest magnitude of every row; NaN where one is not finite."""
    largest = x.abs().amax(-1)
    return largest.masked_fill(largest.isinf(), torch.nan)


def _column(scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    assert scale is not None
    return scale[..., None].to(dtype)


def _stored_width(head_dim: int, storage: Storage) -> int:
    if storage != "int4":
        return head_dim
    if head_dim % 2:
        raise ValueError(f"int4 pages hold two codes a byte and need an even head_dim, got {head_dim}; use int8")
    return head_dim // 2
