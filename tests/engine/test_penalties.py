"""Penalties against their definitions, and what they promise a writer: a loop is left, the rest stays as it was."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.engine import Sampler, SamplingParams, penalties

texts = st.lists(st.integers(0, 3), max_size=30)


@given(ids=st.lists(st.integers(-1, 12), max_size=20), presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
def test_occurrence(ids: list[int], presence: float, frequency: float) -> None:
    scores_V = torch.linspace(-3, 3, 10, dtype=torch.float64)
    count = Counter(ids)
    wanted = [float(x) - frequency * count[i] - presence * (count[i] > 0) for i, x in enumerate(scores_V)]
    ours_V = penalties.penalize_occurrence(scores_V, ids, presence=presence, frequency=frequency)
    torch.testing.assert_close(ours_V, torch.tensor(wanted, dtype=torch.float64))


def test_the_older_half_of_the_range_is_penalised_by_the_slope() -> None:
    scores_V = torch.tensor([1.0, 1.0, 1.0, -1.0])
    # Tokens 0 and 3 stand in the older half, 1 and again 0's neighbour 2 in the newer one.
    ours_V = penalties.penalize_repetition(scores_V, [0, 3, 1, 1], penalty=2.0, slope=0.5)
    torch.testing.assert_close(ours_V, torch.tensor([1 / 1.5, 1 / 2.0, 1.0, -1.5]))


def longest_repeats(ids: list[int], breakers: set[int]) -> dict[int, int]:
    """For every token, how many of the last tokens stood before one of its occurrences."""
    longest: dict[int, int] = {}
    for place in range(1, len(ids)):
        length = 0
        while length < place and ids[place - 1 - length] == ids[-1 - length] and ids[-1 - length] not in breakers:
            length += 1
        if length:
            longest[ids[place]] = max(length, longest.get(ids[place], 0))
    return longest


@given(ids=texts, breakers=st.sets(st.integers(0, 3), max_size=2), allowed=st.integers(1, 4))
def test_continued_repeats(ids: list[int], breakers: set[int], allowed: int) -> None:
    ours_V = penalties.penalize_continued_repeats(
        torch.zeros(4, dtype=torch.float64), ids, multiplier=0.8, base=1.75, allowed_length=allowed, breakers=breakers
    )
    longest = longest_repeats(ids, breakers)
    wanted = [-0.8 * 1.75 ** (n - allowed) if (n := longest.get(i, 0)) >= allowed else 0.0 for i in range(4)]
    torch.testing.assert_close(ours_V, torch.tensor(wanted, dtype=torch.float64))


def test_a_long_loop_is_penalised_by_a_finite_number() -> None:
    scores_V = penalties.penalize_continued_repeats(
        torch.zeros(2), [1] * 5000, multiplier=1.0, base=100.0, allowed_length=2
    )
    assert scores_V[1] < -1e6
    assert scores_V.isfinite().all()


@pytest.mark.parametrize("dry", [0.0, 5.0])
def test_dry_leaves_a_loop(dry: float) -> None:
    """A model that always wants the next letter of abcabc, and would take d instead."""
    text = [0, 1, 2] * 4
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1, dry_multiplier=dry))
    logits_V = torch.tensor([2.0, 0.0, 0.0, 1.9])
    assert sampler.sample(logits_V, text) == (3 if dry else 0)


def test_a_breaker_ends_a_passage() -> None:
    text = [0, 1, 2, 9, 0, 1, 2, 9]
    params = {"temperature": 0, "repetition_penalty": 1, "dry_multiplier": 5.0}
    logits_V = torch.tensor([1.0, 0.9])
    assert Sampler(SamplingParams(**params)).sample(logits_V, text) == 1
    assert Sampler(SamplingParams(**params, dry_breakers=frozenset({9}))).sample(logits_V, text) == 0
