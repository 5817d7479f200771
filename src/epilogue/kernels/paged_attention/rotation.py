"""The Hadamard rotation of the head axis that keys and values take before they become int4."""

import math
from functools import lru_cache

import torch
from torch import Tensor


def rotate(x: Tensor) -> Tensor:
    """Turn the last axis by an orthonormal, symmetric Hadamard matrix (Sylvester's): its own inverse.

    Dot products and norms stay as they were, and an outlier of one channel is spread over all of its block. A width
    that is no power of two is rotated in blocks of the largest power of two that divides it; an odd width not at all.

    Returns:
        The same shape; fp64 for fp64, otherwise fp32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    block = rotation_block(x.shape[-1])
    if block == 1:
        return x.to(dtype)
    blocks = x.to(dtype).unflatten(-1, (-1, block))
    return torch.matmul(blocks, _hadamard(block, dtype, x.device)).flatten(-2)


def rotation_block(width: int) -> int:
    """The largest power of two that divides ``width``."""
    return width & -width


@lru_cache(maxsize=16)
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor made under inference mode could never again be used where gradients are recorded.
    with torch.inference_mode(False):
        signs = torch.ones(1, 1, dtype=torch.float64)
        pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        for _ in range(size.bit_length() - 1):
            signs = torch.kron(pair, signs)
        return (signs / math.sqrt(size)).to(device=device, dtype=dtype)
