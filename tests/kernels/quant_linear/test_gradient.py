"""The way back through codes is that through the dense weight they stand for."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.kernels.quant_linear import dense, gradient, quant_linear
from kernels.quant_linear.weights import random_weight


@given(
    st.integers(1, 9), st.integers(1, 70), st.integers(1, 40), st.sampled_from([4, 8]), st.booleans(),
    st.sampled_from([1, 700, 1 << 20]),
)  # fmt: skip
def test_it_is_the_dense_weight_s(
    rows: int, outputs: int, half_inputs: int, bits: int, has_order: bool, tile_weights: int
) -> None:
    weight = random_weight(outputs, 2 * half_inputs, bits=bits, group_size=24, has_order=has_order)
    x_RI = torch.randn(rows, 2 * half_inputs, dtype=torch.float64, requires_grad=True)
    grad_RO = torch.randn(rows, outputs, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gradient._TILE_WEIGHTS, "cpu", tile_weights)
        quant_linear(x_RI, weight).backward(grad_RO)
    assert x_RI.grad is not None
    torch.testing.assert_close(x_RI.grad, grad_RO @ dense(weight, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_as_exact_as_pytorch(dtype: Any) -> None:
    weight = random_weight(3000, 512)
    x_RI = torch.randn(7, 512, dtype=dtype, requires_grad=True)
    grad_RO = torch.randn(7, 3000, dtype=dtype)
    quant_linear(x_RI, weight).backward(grad_RO)
    exact = grad_RO.double() @ dense(weight, dtype=torch.float64)
    plain = grad_RO @ dense(weight, dtype=dtype)
    assert x_RI.grad is not None
    assert x_RI.grad.dtype == dtype
    assert (x_RI.grad - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6


def test_nothing_dense_is_kept() -> None:
    weight = random_weight(300, 64)
    x_RI = torch.randn(5, 64, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        quant_linear(x_RI, weight)
    assert not saved
