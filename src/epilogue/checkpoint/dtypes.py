"""The number formats that weights are stored and run in, and the way from one to another."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from epilogue.errors import CheckpointError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what is not a number format of weights.

    Raises:
        ValueError: neither None nor float32, float16, bfloat16 or float64.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be None, {', '.join(map(str, _DTYPES))}; got {dtype}")


def check_storage(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not plain floating-point numbers.

    Raises:
        CheckpointError: integers or 8-bit floats, or no dense values at all.
    """
    if tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"the tensor {name} is {tensor.dtype}, which is neither a float nor a part of a quantised layer; use a "
            f"checkpoint in float16, bfloat16 or float32, or one that GPTQ has quantised"
        )
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise CheckpointError(f"the tensor {name} holds no dense values; save it as a plain tensor")


def convert(name: str, tensor: Tensor, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A contiguous copy with the same values, rounded where the dtype asks for it; same bits if it does not.

    Raises:
        CheckpointError: a finite value becomes infinite (float16 ends at 65,504).
    """
    copy = tensor.detach().to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    if not tensor.is_floating_point():
        return copy
    is_narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if is_narrower and bool(copy.isinf().sum() > tensor.isinf().sum()):
        raise CheckpointError(f"the tensor {name} has values too large for {dtype}; choose bfloat16 or float32")
    return copy


def prevailing_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype that most of the values have."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]
