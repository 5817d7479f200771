"""The oracle itself, against the formula written as loops and against finite differences."""

import math

import pytest
import torch

from epilogue.kernels.attention import attention
from kernels.attention.exactness import random_inputs


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
def test_is_the_formula(heads: int, kv_heads: int) -> None:
    q, k, v = random_inputs(4, 7, heads=heads, kv_heads=kv_heads, head_dim=5, dtype=torch.float64)
    slopes = torch.rand(heads)
    out = attention(q, k, v, slopes, scale=0.3, backend="reference")
    for t in range(4):
        for h in range(heads):
            position, kv_head = 3 + t, h * kv_heads // heads
            weights = [
                math.exp(0.3 * q[0, t, h].dot(k[0, s, kv_head]).item() - slopes[h].item() * (position - s))
                for s in range(position + 1)
            ]
            expected = sum(w * v[0, s, kv_head] for s, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(out[0, t, h], expected, rtol=1e-13, atol=1e-13)


def test_gradients_are_the_slopes_of_the_values() -> None:
    q, k, v = (x.requires_grad_() for x in random_inputs(3, 5, head_dim=2, dtype=torch.float64))

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return attention(*inputs, torch.tensor([0.5, 0.1, 0.0]), scale=0.7, backend="reference")

    assert torch.autograd.gradcheck(run, (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    out = attention(*random_inputs(2, 3, dtype=dtype), torch.ones(3), scale=1.0, backend="reference")
    assert out.dtype == dtype
