"""Temperatures that depend on the distribution, and mirostat, which steers it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.engine import Sampler, SamplingParams, temperatures
from epilogue.engine.mirostat import Mirostat

rows = st.lists(st.floats(-30, 30), min_size=2, max_size=30).map(lambda x: torch.tensor(x, dtype=torch.float64))


@given(scores_V=rows, exponent=st.floats(0.1, 5))
def test_the_surer_the_colder(scores_V: torch.Tensor, exponent: float) -> None:
    ours = temperatures.entropy_temperature(scores_V, low=0.3, high=1.7, exponent=exponent)
    steeper = temperatures.entropy_temperature(2 * scores_V, low=0.3, high=1.7, exponent=exponent)
    assert 0.3 <= steeper <= ours + 1e-9 <= 1.7 + 1e-9


def test_the_ends_of_the_range_are_met() -> None:
    even_V, sure_V = torch.zeros(50), torch.tensor([0.0] + [-1e4] * 49)
    assert temperatures.entropy_temperature(even_V, low=0.5, high=1.5, exponent=1) == pytest.approx(1.5)
    assert temperatures.entropy_temperature(sure_V, low=0.5, high=1.5, exponent=1) == pytest.approx(0.5)
    assert temperatures.entropy_temperature(torch.tensor([0.0, -torch.inf]), low=0.5, high=1.5, exponent=1) == 0.5


@given(scores_V=rows, factor=st.floats(0.01, 3), curve=st.floats(1, 4))
def test_smoothing_keeps_the_likeliest_and_the_banned(scores_V: torch.Tensor, factor: float, curve: float) -> None:
    scores_V[0] = -torch.inf
    smooth_V = temperatures.smooth(scores_V, factor=factor, curve=curve)
    assert smooth_V[0] == -torch.inf
    assert smooth_V.max() == 0
    assert scores_V[smooth_V.argmax()] == scores_V.max()


def test_quadratic_smoothing() -> None:
    smooth_V = temperatures.smooth(torch.tensor([3.0, 2.0, -1.0]), factor=0.5, curve=1.0)
    assert smooth_V.tolist() == [0.0, -0.5, -8.0]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("surprise", [2.0, 4.0])
def test_mirostat_holds_the_surprise(version: int, surprise: float) -> None:
    """Of tokens that follow Zipf's law, chosen 2,000 times."""
    logits_V = -1.1 * torch.arange(1, 3001, dtype=torch.float64).log()
    controller = Mirostat(version, surprise=surprise, rate=0.1)
    generator, surprises = torch.Generator().manual_seed(1), []
    for _ in range(2000):
        probs_V = controller.keep(logits_V).softmax(0)
        chosen = int(torch.multinomial(probs_V, 1, generator=generator))
        surprises.append(-math.log2(float(probs_V[chosen])))
        controller.learn(float(probs_V[chosen]))
    assert sum(surprises[200:]) / len(surprises[200:]) == pytest.approx(surprise, abs=0.15)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("logits", [[0.0], [0.0, 0.0], [9.0, -torch.inf, -torch.inf], [0.0] * 500])
def test_mirostat_always_leaves_a_token(version: int, logits: list[float]) -> None:
    controller = Mirostat(version, surprise=0.0, rate=1.0)
    for _ in range(3):
        probs_V = controller.keep(torch.tensor(logits, dtype=torch.float64)).softmax(0)
        assert probs_V.sum().item() == pytest.approx(1)
        controller.learn(float(probs_V.max()))


def test_mirostat_writes_by_the_seed() -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(2):
        sampler = Sampler(SamplingParams(mirostat=2, seed=5))
        runs.append([sampler.sample(logits_V, range(n)) for n in range(30)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3
