"""bf16 weights lose nothing: exactly with their lower half beside them, on average with random rounding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.train.optimizers.rounding import join, round_at_random, split

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=50))
def test_two_halves_are_the_whole(values: list[float]) -> None:
    wide = torch.tensor(values)
    narrow, lower = split(wide)
    assert (narrow.dtype, lower.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(join(narrow, lower).view(torch.int32), wide.view(torch.int32))


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50))
def test_the_upper_half_is_the_nearest(values: list[float]) -> None:
    wide = torch.tensor(values)
    narrow, _ = split(wide)
    assert ((narrow.float() - wide).abs() <= (wide.bfloat16().float() - wide).abs()).all()


def test_random_rounding_is_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, generator=generator) * 10 ** torch.randint(-20, 20, (40,), generator=generator)
    draws = 20_000
    rounded = round_at_random(values.expand(draws, -1).contiguous(), generator).float()
    below, above = rounded.amin(0), rounded.amax(0)
    gap = above - below
    assert ((below <= values) & (values <= above)).all()
    assert (gap <= values.abs() * 2**-7).all(), "neighbours, no others"
    # The mean of so many draws of two values is that far off once in 10,000 trials, for any of 40 numbers.
    deviation = gap / 2 / draws**0.5
    assert ((rounded.double().mean(0) - values.double()).abs() <= 4.8 * deviation + 1e-45).all()


def test_what_bf16_has_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1000, generator=generator).bfloat16()
    assert torch.equal(round_at_random(exact.float(), generator), exact)
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    rounded = round_at_random(odd, generator)
    assert torch.equal(rounded[:2], odd[:2].bfloat16())
    assert rounded[2].isnan()
    assert rounded[3] == 0


def test_the_seed_decides() -> None:
    x = torch.rand(100)
    one, other = (round_at_random(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, round_at_random(x, torch.Generator().manual_seed(6)))
