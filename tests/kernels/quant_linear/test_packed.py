"""The GPU kernels: interpreted and compiled anywhere, each in a process of its own, and run where there is a GPU."""

import pytest
import torch

from fresh_process import needs_triton, printed_by
from kernels.quant_linear.exactness import assert_as_exact_as_pytorch
from kernels.quant_linear.weights import on_device, random_weight


@needs_triton
def test_the_interpreted_kernels_are_as_exact_as_pytorch() -> None:
    assert printed_by("kernels.quant_linear.interpreted_cases").endswith("done\n")


@needs_triton
def test_the_kernels_compile_for_a_gpu() -> None:
    assert len(printed_by("kernels.quant_linear.compiled_cases", "90").splitlines()) == 15


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_other_gpus() -> None:
    printed_by("kernels.quant_linear.compiled_cases", "80,89")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 12288, 4096), (4, 999, 4000), (17, 1000, 1024), (64, 4096, 16384)]
)
def test_on_an_accelerator(rows: int, outputs: int, inputs: int, bits: int, dtype: torch.dtype) -> None:
    weight = random_weight(outputs, inputs, bits=bits, group_size=128, has_order=True)
    weight = on_device(weight, "cuda")
    assert_as_exact_as_pytorch(torch.randn(rows, inputs, device="cuda").to(dtype), weight, "packed")
    assert_as_exact_as_pytorch(torch.randn(rows, inputs, device="cuda").to(dtype), weight, None)
    assert_as_exact_as_pytorch(torch.randn(rows + 64, inputs, device="cuda").to(dtype), weight, None)
