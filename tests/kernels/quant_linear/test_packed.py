"""The GPU kernels: interpreted and compiled anywhere, each in a process of its own, and run where there is a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kernels.quant_linear.exactness import assert_as_exact_as_pytorch
from kernels.quant_linear.weights import on_device, random_weight

TESTS = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not made for this system")


def run(module: str, *arguments: str) -> str:
    """What a test module prints in a fresh process."""
    command = [sys.executable, "-m", f"kernels.quant_linear.{module}", *arguments]
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    # Its own import path before any other, so that the process tests what this one does.
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_the_interpreted_kernels_are_as_exact_as_pytorch() -> None:
    assert run("interpreted_cases").endswith("done\n")


@needs_triton
def test_the_kernels_compile_for_a_gpu() -> None:
    assert len(run("compiled_cases", "90").splitlines()) == 15


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_other_gpus() -> None:
    run("compiled_cases", "80,89")


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
