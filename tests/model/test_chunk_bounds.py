"""The bounds of a chunk's tiles and pages are the same by kernels as by operators."""

import pytest

from fresh_process import needs_triton, printed_by
from model.interpreted_bounds import compare_all


@needs_triton
def test_kernels_bound_what_operators_do() -> None:
    assert printed_by("model.interpreted_bounds", interpreted=True).endswith("done\n")


@pytest.mark.gpu
def test_on_an_accelerator_kernels_bound_what_operators_do() -> None:
    compare_all("cuda")
