"""Codes lie as near to their numbers as their scale promises, and the rotation is what it says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.kernels.paged_attention import (
    PAGE_TOKENS,
    allocate_pages,
    bytes_per_page,
    dequantize,
    quantize,
    rotate,
)
from kernels.paged_attention.books import STORAGES

each_storage = pytest.mark.parametrize("storage", STORAGES)
numbers = st.integers(0, 2**31)
magnitudes = st.sampled_from([1e-42, 1e-38, 1e-20, 1e-3, 1.0, 300.0, 1e20])


def rows_of(seed: int, width: int, magnitude: float, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(5, width, generator=generator) + offset) * magnitude


@given(seed=numbers, width=st.integers(1, 130), magnitude=magnitudes)
def test_int8_is_within_half_a_step(seed: int, width: int, magnitude: float) -> None:
    x = rows_of(seed, width, magnitude)
    rows = quantize(x, "int8")
    assert rows.scale is not None
    error = (dequantize(rows, dtype=torch.float64) - x).abs()
    assert (error <= rows.scale[:, None].double() * (0.5 + 1e-4)).all()
    assert (rows.scale <= (x.abs().amax(1) / 127).clamp(min=1.2e-38)).all()


@given(seed=numbers, half=st.integers(1, 65), magnitude=magnitudes, offset=st.sampled_from([0.0, 1.0, 100.0]))
def test_int4_is_within_half_a_step_after_the_rotation(seed: int, half: int, magnitude: float, offset: float) -> None:
    x = rows_of(seed, 2 * half, magnitude, offset)
    rows = quantize(x, "int4")
    assert rows.scale is not None
    turned = rotate(x)
    error = (rotate(dequantize(rows, dtype=torch.float64)) - turned).abs()
    rounding = 2.0**-20 * turned.abs().amax(1, keepdim=True)
    assert (error <= rows.scale[:, None].double() * (0.5 + 1e-4) + rounding).all()
    span = turned.amax(1) - turned.amin(1)
    assert (rows.scale <= torch.maximum(span / 15, 2.0**-20 * turned.abs().amax(1)).clamp(min=1.2e-38) * 1.001).all()


@given(seed=numbers, width=st.integers(1, 200))
def test_the_rotation_is_orthonormal_and_its_own_inverse(seed: int, width: int) -> None:
    x, y = rows_of(seed, width, 1.0).double(), rows_of(seed + 1, width, 1.0).double()
    torch.testing.assert_close(rotate(rotate(x)), x)
    torch.testing.assert_close(rotate(x) @ rotate(y).T, x @ y.T)


@pytest.mark.parametrize(("width", "block"), [(128, 128), (96, 32), (2, 2), (7, 1)])
def test_the_rotation_spreads_an_outlier_over_its_block(width: int, block: int) -> None:
    turned = rotate(torch.eye(width)[0])
    assert torch.equal(turned != 0, torch.arange(width) < block)
    torch.testing.assert_close(turned[:block].abs(), torch.full((block,), block**-0.5))


def test_the_rotation_helps_int4_against_an_outlier() -> None:
    x = torch.randn(1000, 64)
    x[:, 3] *= 30
    plain_step = (x.amax(1) - x.amin(1)) / 15
    scale = quantize(x, "int4").scale
    assert scale is not None
    assert scale.mean() < plain_step.mean() / 2


@each_storage
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, 1.0, -3.0, 1e30])
def test_a_constant_row_comes_back(storage: str, value: float) -> None:
    x = torch.zeros(2, 16)
    x[1, 0] = value * 4  # after the rotation every element is the value
    back = dequantize(quantize(x, storage))
    assert torch.equal(back[0], x[0])
    if storage == "int4":
        assert (back[1] - x[1]).abs().max() <= 1e-6 * abs(value) + 4e-38


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_does_not_vanish(storage: str, value: float) -> None:
    x = torch.ones(3, 16)
    x[1, 5] = value
    back = dequantize(quantize(x, storage))
    assert not back[1].isfinite().all()
    assert back[[0, 2]].isfinite().all()
    if storage in ("int8", "int4"):
        assert back[1].isnan().all()


@each_storage
def test_rows_are_quantised_each_by_itself(storage: str) -> None:
    x = torch.randn(2, 3, 4, 32)
    whole = dequantize(quantize(x, storage))
    assert whole.shape == x.shape
    torch.testing.assert_close(whole[1, 2], dequantize(quantize(x[1, 2], storage)), rtol=1e-6, atol=1e-6)


@each_storage
def test_a_page_is_as_large_as_it_says(storage: str) -> None:
    pages = allocate_pages(5, 64, storage)
    assert (pages.storage, pages.head_dim) == (storage, 64)
    parts = [part for part in vars(pages).values() if part is not None]
    assert sum(part.numel() * part.element_size() for part in parts) == 5 * bytes_per_page(64, storage)
    assert all(part.shape[:2] == (5, PAGE_TOKENS) for part in parts)


@pytest.mark.parametrize(
    "call",
    [
        lambda: allocate_pages(1, 7, "int4"),
        lambda: quantize(torch.zeros(2, 7), "int4"),
        lambda: bytes_per_page(7, "int4"),
    ],
)
def test_int4_wants_an_even_width(call: object) -> None:
    with pytest.raises(ValueError, match="even head_dim, got 7"):
        call()  # type: ignore[operator]
