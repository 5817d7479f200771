"""What 8 bits keep of a moment: a relative precision, whatever the size of its row's other values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.train.optimizers.eight_bits import BLOCK, Kind, from_eight_bits, to_eight_bits

POWERS: dict[Kind, int] = {"signed": 2, "unsigned": 4}
STEPS: dict[Kind, int] = {"signed": 127, "unsigned": 255}


@given(st.sampled_from(["signed", "unsigned"]), st.integers(1, 600), st.integers(0, 2**31), st.floats(0.1, 6))
def test_a_value_is_off_by_half_a_step_of_its_root(kind: Kind, width: int, seed: int, decades: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, width, generator=generator) * 10 ** (decades * (torch.rand(3, width, generator=generator) - 1))
    x = x if kind == "signed" else x.square()
    codes, scales = to_eight_bits(x, kind)
    assert codes.shape == x.shape
    assert scales.shape == (3, -(-width // BLOCK))
    back = from_eight_bits(codes, scales, kind)
    largest = scales.repeat_interleave(BLOCK, dim=1)[:, :width]
    root, back_root = ((y.abs() / largest) ** (1 / POWERS[kind]) for y in (x, back))
    # Tiny squares are rounded up to the first step.
    most = torch.where((root * STEPS[kind] < 0.5) & (kind == "unsigned"), 1.0, 0.5) / STEPS[kind]
    assert ((root - back_root).abs() <= most + 1e-5).all()
    assert (back.sign() * x.sign() >= 0).all()


@given(st.sampled_from(["signed", "unsigned"]), st.integers(0, 2**31))
def test_codes_are_kept_by_another_round(kind: Kind, seed: int) -> None:
    """A moment that does not change does not drift."""
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(seed))
    codes, scales = to_eight_bits(x if kind == "signed" else x.square(), kind)
    again, same_scales = to_eight_bits(from_eight_bits(codes, scales, kind), kind)
    assert torch.equal(codes, again)
    torch.testing.assert_close(scales, same_scales)


def test_nothing_but_nothing_is_nothing() -> None:
    zeros = torch.zeros(2, 5)
    for kind in POWERS:
        assert torch.equal(from_eight_bits(*to_eight_bits(zeros, kind), kind), zeros)
    squares = torch.tensor([[1.0, 1e-30, 0.0]])
    assert (from_eight_bits(*to_eight_bits(squares, "unsigned"), "unsigned") > 0).tolist() == [[True, True, False]]


@pytest.mark.parametrize("kind", POWERS)
def test_a_row_does_not_touch_another(kind: Kind) -> None:
    x = torch.rand(4, 700)
    whole, parts = to_eight_bits(x, kind), [to_eight_bits(row, kind) for row in x.split(1)]
    assert torch.equal(whole[0], torch.cat([codes for codes, _ in parts]))
    assert torch.equal(whole[1], torch.cat([scales for _, scales in parts]))
