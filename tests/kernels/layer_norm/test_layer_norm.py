"""Norms by a kernel that is interpreted here and run where there is a GPU: PyTorch's numbers, and where it is used."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from epilogue.kernels.layer_norm import MOST_ROWS, layer_norm, op
from fresh_process import needs_triton, printed_by
from kernels.layer_norm.cases import assert_as_exact_as_pytorch


@needs_triton
def test_the_interpreted_kernel_is_as_exact_as_pytorch() -> None:
    assert printed_by("kernels.layer_norm.cases", interpreted=True) == "done\n"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_on_an_accelerator(dtype: torch.dtype, has_bias: bool) -> None:
    for rows, columns in ((1, 4096), (3, 100), (16, 384), (5000, 4096)):
        assert_as_exact_as_pytorch(rows, columns, dtype=dtype, has_bias=has_bias, device="cuda")


def test_a_norm_that_learns_has_its_gradients() -> None:
    x, gain = torch.randn(2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    layer_norm(x, gain, None, eps=1e-5).square().sum().backward()
    ours = x.grad
    assert ours is not None
    x.grad = None
    F.layer_norm(x, (8,), gain, None, 1e-5).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(ours, x.grad)


def test_on_a_gpu_the_kernel_norms_few_rows_and_sums_of_any_number() -> None:
    with FakeTensorMode(), torch.no_grad():
        gain = torch.ones(64, device="cuda", dtype=torch.bfloat16)
        few, many, none = (gain.expand(rows, 64) for rows in (MOST_ROWS, 5000, 0))
        assert op._choose(few, gain, None) == op._choose(many, gain, None, is_sum=True) == "triton"
        for other in (op._choose(many, gain, None), op._choose(none, gain, None), op._choose(few.float(), gain, None)):
            assert other == "reference"
        with torch.enable_grad():
            assert op._choose(many, gain, None, is_sum=True) == "reference"
