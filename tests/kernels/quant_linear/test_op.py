"""quant_linear: every backend means what the reference means, and wrong calls are named."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from epilogue.kernels.quant_linear import quant_linear, tiled
from kernels.quant_linear.exactness import assert_as_exact_as_pytorch
from kernels.quant_linear.weights import random_weight

CASES: list[tuple[int, int, int, dict[str, Any]]] = [
    (1, 8, 16, {}),
    (63, 24, 48, {"group_size": 32}),
    (3, 1000, 64, {"bits": 8, "group_size": 16}),
    (1, 40, 1000, {"group_size": 128, "has_order": True}),
    (130, 7, 256, {"bits": 8, "group_size": 256, "has_order": True}),
    (5, 16, 128, {"scale_dtype": torch.float32}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "outputs", "inputs", "options"), CASES)
def test_tiles_are_as_exact_as_pytorch(
    rows: int, outputs: int, inputs: int, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, x_RI = random_weight(outputs, inputs, **options), torch.randn(rows, inputs).to(dtype)
    assert_as_exact_as_pytorch(x_RI, weight, "tiled")
    monkeypatch.setitem(tiled._TILE_WEIGHTS, "cpu", 3 * inputs)
    assert_as_exact_as_pytorch(x_RI, weight, "tiled")


def test_fp64_is_fp64() -> None:
    weight, x_RI = random_weight(40, 96), torch.randn(3, 96, dtype=torch.float64)
    torch.testing.assert_close(quant_linear(x_RI, weight), quant_linear(x_RI, weight, backend="reference"))


def test_no_rows() -> None:
    assert quant_linear(torch.zeros(0, 16), random_weight(8, 16)).shape == (0, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scales_OG": torch.ones(8, 2)}, "have scales and zero points"),
        ({"zeros_OG": torch.ones(8, 1)}, "zero points int16"),
        ({"group_size": 99}, "group_size must be 1 to 32"),
        ({"order_I": torch.arange(4, dtype=torch.int32)}, "order of inputs must be"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quant_linear(torch.zeros(1, 32), replace(random_weight(8, 32), **changes))


def test_rows_that_do_not_fit() -> None:
    for x_RI in (torch.zeros(1, 30), torch.zeros(32), torch.zeros(1, 32, dtype=torch.int32)):
        with pytest.raises(ValueError, match="wanted rows of 32 floats"):
            quant_linear(x_RI, random_weight(8, 32))
