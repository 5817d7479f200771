"""The learning rate rises, holds and falls."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epilogue.train.schedule import learning_rate_factor


@given(st.integers(1, 400), st.integers(0, 500), st.floats(0, 1))
def test_it_rises_holds_and_falls(steps: int, warmup_steps: int, cooldown_share: float) -> None:
    factors = [
        learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps, cooldown_share=cooldown_share)
        for step in range(steps)
    ]
    cooldown_steps = max(1, round(steps * cooldown_share))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] <= max(1 / (warmup_steps + 1), 1e-9)
    assert factors[-1] <= 1 / cooldown_steps
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    held = factors[warmup_steps : steps - cooldown_steps + 1]
    assert held == [1.0] * len(held)


def test_the_parts_are_straight() -> None:
    factors = [learning_rate_factor(step, steps=10, warmup_steps=3, cooldown_share=0.4) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@given(st.integers(1, 400), st.integers(0, 100), st.floats(0, 1), st.sampled_from(["cosine", "inverse_sqrt"]))
def test_others_rise_and_fall(steps: int, warmup_steps: int, final_share: float, schedule: Any) -> None:
    factors = [
        learning_rate_factor(
            step, steps=steps, warmup_steps=warmup_steps, cooldown_share=0, schedule=schedule, final_share=final_share
        )
        for step in range(steps)
    ]
    assert all(0 < factor <= 1 + 1e-12 for factor in factors)
    peak = min(warmup_steps, steps - 1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if schedule == "cosine":
        assert min(factors[peak:]) >= min(final_share, factors[peak]) - 1e-12


def test_a_cosine_and_a_root() -> None:
    settings: dict[str, Any] = {"steps": 8, "warmup_steps": 0, "cooldown_share": 0.25}
    cosine = [learning_rate_factor(step, **settings, schedule="cosine", final_share=0.2) for step in (0, 2, 4)]
    assert cosine == pytest.approx([1, 0.2 + 0.4 * (1 + 2**-0.5), 0.6])
    root = [learning_rate_factor(step, **settings, schedule="inverse_sqrt") for step in (0, 3, 6, 7)]
    assert root == pytest.approx([1, 0.5, 7**-0.5, 0.5 * 8**-0.5])
    wsd = [learning_rate_factor(step, **settings, final_share=0.1) for step in (0, 6, 7)]
    assert wsd == pytest.approx([1, 1, 0.55])
