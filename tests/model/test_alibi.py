"""Slopes, against the figures of the paper's formula and against the two-base form BLOOM and ggml use."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.model import alibi_slopes


def slopes_by_two_bases(n_heads: int, bias_max: float) -> list[float]:
    """Powers of one base for the largest power of two below, then odd powers of its square root for the rest."""
    lower = 2 ** math.floor(math.log2(n_heads))
    base, finer_base = 2 ** (-bias_max / lower), 2 ** (-bias_max / (2 * lower))
    rest = [finer_base**power for power in range(1, 2 * (n_heads - lower), 2)]
    return [base**power for power in range(1, lower + 1)] + rest


@given(st.integers(1, 64), st.sampled_from([1, 4, 8, 16, 6.5]))
def test_equal_the_two_base_formula(n_heads: int, bias_max: float) -> None:
    slopes = alibi_slopes(n_heads, bias_max)
    assert slopes.dtype == torch.float32
    torch.testing.assert_close(slopes, torch.tensor(slopes_by_two_bases(n_heads, bias_max)), rtol=1e-6, atol=0)


def test_six_heads() -> None:
    assert alibi_slopes(6).tolist() == [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]


def test_twenty_four_heads() -> None:
    exponents = [-0.5 * i for i in range(1, 17)] + [-0.25 - 0.5 * i for i in range(8)]
    torch.testing.assert_close(alibi_slopes(24), torch.tensor([2.0**e for e in exponents]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8, 16])
def test_a_power_of_two_of_heads_has_exact_powers_of_two(n_heads: int) -> None:
    assert alibi_slopes(n_heads, 16).tolist() == [2.0 ** (-16 * i / n_heads) for i in range(1, n_heads + 1)]


def test_storywriters_flattest_head() -> None:
    assert alibi_slopes(32, 16).min().item() == 2.0**-16
    assert alibi_slopes(32, 16).max().item() == pytest.approx(2**-0.5)
