"""Test modules in processes of their own: Triton chooses between GPU and interpreter when it is first imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not made for this system")


def printed_by(module: str, *arguments: str, interpreted: bool = False) -> str:
    """What a test module prints, with Triton's kernels interpreted or not; it must not fail."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    # Its own import path before any other, so that the process tests what this one does.
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
