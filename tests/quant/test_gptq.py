"""The solver: as its definition, never worse than rounding where it counts, and honest about what it cannot do."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epilogue.errors import CheckpointError
from epilogue.model import dense, unpack_codes
from epilogue.quant import Scheme
from epilogue.quant.gptq import output_error, round_to_nearest, solve
from quant.naive_gptq import naive_gptq


def layer(outputs: int, inputs: int, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the moments of inputs that lean on one another."""
    x = torch.randn(rows, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64)
    return torch.randn(outputs, inputs, dtype=torch.float64), x.T @ x


@pytest.mark.parametrize("has_act_order", [False, True])
@pytest.mark.parametrize("is_symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "inputs", "group"), [(4, 64, 16), (4, 300, 150), (8, 48, 32), (4, 200, -1), (4, 6, 1)]
)
def test_blocks_do_what_single_columns_do(
    bits: int, inputs: int, group: int, *, is_symmetric: bool, has_act_order: bool
) -> None:
    weight, moments = layer(9, inputs)
    scheme = Scheme(bits=bits, group_size=group, is_symmetric=is_symmetric, has_act_order=has_act_order)
    expected = naive_gptq(
        weight, moments, bits=bits, group=scheme.group_of(inputs), is_symmetric=is_symmetric,
        has_act_order=has_act_order, damping=scheme.damping,
    )  # fmt: skip
    assert torch.equal(dense(solve(weight, moments, scheme), dtype=torch.float64), expected)


def test_fp32_comes_close_to_fp64() -> None:
    weight, moments = layer(64, 256, rows=4000)
    errors = [
        output_error(weight, dense(solve(weight.to(dtype), moments.to(dtype), Scheme()), dtype=torch.float64), moments)
        for dtype in (torch.float32, torch.float64)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.booleans(), st.booleans())
def test_correlated_inputs_are_served_better_than_by_rounding(
    seed: int, bits: int, is_symmetric: bool, has_act_order: bool
) -> None:
    torch.manual_seed(seed)
    weight, moments = layer(16, 64)
    scheme = Scheme(bits=bits, group_size=32, is_symmetric=is_symmetric, has_act_order=has_act_order)
    ours, nearest = (
        dense(x, dtype=torch.float64) for x in (solve(weight, moments, scheme), round_to_nearest(weight, scheme))
    )
    assert output_error(weight, ours, moments) < output_error(weight, nearest, moments)


def test_independent_inputs_leave_nothing_to_correct() -> None:
    weight, scheme = torch.randn(5, 64), Scheme(group_size=16)
    for moments in (torch.eye(64), torch.zeros(64, 64)):
        ours, nearest = solve(weight, moments, scheme), round_to_nearest(weight, scheme)
        assert torch.equal(dense(ours), dense(nearest))


def test_an_input_that_never_came_is_rounded_and_kept() -> None:
    weight, moments = layer(5, 32)
    moments[7], moments[:, 7] = 0, 0
    scheme = Scheme(group_size=-1)
    made = solve(weight, moments, scheme)
    step = made.scales_OG.double().amax(dim=1)
    assert ((dense(made, dtype=torch.float64)[:, 7] - weight[:, 7]).abs() <= step).all()


def test_weights_that_fit_the_grid_stay() -> None:
    weight = (torch.randint(16, (6, 64)) - 8).double() / 8
    weight[:, ::32] = -1.0
    weight[:, 1::32] = 7 / 8
    _, moments = layer(6, 64)
    made = solve(weight, moments, Scheme(group_size=32, is_symmetric=False))
    assert torch.equal(dense(made, dtype=torch.float64), weight)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_odd_groups_are_legal(is_symmetric: bool) -> None:
    weight = torch.stack([torch.zeros(32), torch.full((32,), 3.0), torch.full((32,), -1e-9), torch.rand(32) + 5])
    for made in (
        round_to_nearest(weight, Scheme(group_size=16, is_symmetric=is_symmetric)),
        solve(weight, torch.eye(32), Scheme(group_size=16, is_symmetric=is_symmetric)),
    ):
        assert made.zeros_OG.min() >= 1
        assert made.zeros_OG.max() <= 15
        assert unpack_codes(made.codes_OI, 4).max() <= 15
        assert dense(made)[0].tolist() == [0.0] * 32
        assert (dense(made)[1:] - weight[1:]).abs().max() <= 0.4  # half a step of 5.x / 7


@pytest.mark.parametrize(
    ("weight", "moments", "said"),
    [
        (torch.full((4, 16), float("nan")), torch.eye(16), "not finite"),
        (torch.ones(4, 16), torch.full((16, 16), float("inf")), "not finite"),
        (torch.full((4, 16), 1e7), torch.eye(16), "too large for a scale"),
        (torch.ones(4, 16), -torch.eye(16), "cannot be inverted"),
    ],
)
def test_what_cannot_be_done_is_said(weight: Any, moments: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        solve(weight, moments, Scheme())


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"group_size": 0}, {"group_size": -2}])
def test_a_scheme_that_is_none(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted 4 or 8 bits and a positive group size"):
        Scheme(**wrong)
