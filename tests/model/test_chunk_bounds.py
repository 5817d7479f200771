"""The bounds of a chunk's tiles and pages are the same by kernels as by operators."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from model.interpreted_bounds import compare_all

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not made for this system")
def test_kernels_bound_what_operators_do() -> None:
    path = f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}"
    done = subprocess.run(
        [sys.executable, "-m", "model.interpreted_bounds"],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr


@pytest.mark.gpu
def test_on_an_accelerator_kernels_bound_what_operators_do() -> None:
    compare_all("cuda")
