"""The norm of few rows: PyTorch's numbers, by a kernel that is interpreted here and run where there is a GPU."""

import pytest
import torch
import torch.nn.functional as F

from epilogue.kernels.few_row_norm import few_row_norm
from fresh_process import needs_triton, printed_by
from kernels.few_row_norm.cases import assert_as_exact_as_pytorch


@needs_triton
def test_the_interpreted_kernel_is_as_exact_as_pytorch() -> None:
    assert printed_by("kernels.few_row_norm.cases", interpreted=True) == "done\n"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_on_an_accelerator(dtype: torch.dtype, has_bias: bool) -> None:
    for rows, columns in ((1, 4096), (3, 100), (16, 384)):
        assert_as_exact_as_pytorch(rows, columns, dtype=dtype, has_bias=has_bias, device="cuda")


def test_a_norm_that_learns_has_its_gradients() -> None:
    x, gain = torch.randn(2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    few_row_norm(x, gain, None, eps=1e-5).square().sum().backward()
    ours = x.grad
    assert ours is not None
    x.grad = None
    F.layer_norm(x, (8,), gain, None, 1e-5).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(ours, x.grad)
