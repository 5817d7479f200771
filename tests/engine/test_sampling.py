"""Settings that are refused, and what the sampler promises whatever the logits are."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from epilogue.engine import Sampler, SamplingParams, sampling
from epilogue.engine.sampling_params import Stage
from epilogue.errors import EpilogueError, RequestError

OFF: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

logit_rows = st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=40).map(torch.tensor)
settings_of_a_request = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.floats(0, 5), st.floats(0, 1e300)),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    repetition_range_tokens=st.integers(0, 10),
    seed=st.integers(0, 2**32 - 1),
    ignore_eos=st.booleans(),
    top_a=st.floats(0, 1),
    tail_free=st.floats(0, 1, exclude_min=True),
    typical=st.floats(0, 1, exclude_min=True),
    temperature_range=st.floats(0, 3),
    smoothing_factor=st.sampled_from([0.0, 0.3]),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    xtc_probability=st.floats(0, 1),
    mirostat=st.integers(0, 2),
    order=st.permutations(get_args(Stage)).map(tuple),
)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_p", 1.4, r"^top_p must be in \(0, 1\], got 1\.4; 1\.0 turns it off$"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\], got 0\.0"),
        ("min_p", -0.1, r"min_p must be in \[0, 1\], got -0\.1; 0 turns it off"),
        ("min_p", 1.1, "min_p"),
        ("temperature", -1, "temperature must be a finite number >= 0, got -1; 0 always takes the likeliest"),
        ("temperature", 10**400, "temperature must be a finite number"),
        ("top_k", -1, "top_k must be a whole number >= 0, got -1; 0 turns it off"),
        ("top_k", 2.5, r"top_k .*, got 2\.5"),
        ("repetition_penalty", 0, r"repetition_penalty must be in \[0\.01, 100\], got 0; 1\.0 turns it off"),
        ("repetition_range_tokens", -1, "repetition_range_tokens .* 0 counts the whole text"),
        ("seed", -1, r"seed must be a whole number in \[0, 2\*\*32\), got -1; None draws one"),
        ("seed", 2**32, "seed"),
        ("max_new_tokens", -1, "max_new_tokens"),
        ("temperature", "hot", "temperature must be a finite number >= 0, got 'hot'"),
        ("temperature", True, "temperature"),
        ("max_new_tokens", None, "max_new_tokens"),
        ("mirostat", 3, "mirostat must be 0, 1 or 2, got 3; 0 turns it off"),
        ("order", ("top_k", "top_k"), "order must name each of repetition, .* at most once, got"),
        ("order", ("top_z",), "order must name"),
        ("logit_bias", {"1": 2.0}, "logit_bias must give token ids finite numbers, got '1': 2.0"),
        ("logit_bias", {1: math.inf}, "logit_bias"),
    ],
)
def test_out_of_range_is_refused_in_one_sentence(name: str, value: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_the_edges_of_the_ranges_are_allowed() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1, seed=0, max_new_tokens=0)
    SamplingParams(temperature=1e300, top_p=1e-300, min_p=1, repetition_penalty=100, seed=2**32 - 1)


@given(logits_V=logit_rows, params=settings_of_a_request, history=st.lists(st.integers(0, 50)), data=st.data())
def test_only_an_allowed_token_is_sampled(
    logits_V: Tensor, params: SamplingParams, history: list[int], data: st.DataObject
) -> None:
    num_tokens = data.draw(st.integers(2, len(logits_V)))
    sampler = Sampler(params, eos_id=0, num_tokens=num_tokens)
    probs_V = sampler.probabilities(logits_V, history)
    token_id = sampler.sample(logits_V, history)
    assert token_id < num_tokens == len(probs_V)
    assert probs_V[token_id] > 0
    assert probs_V.sum().item() == pytest.approx(1)
    assert not (params.ignore_eos and token_id == 0)


@given(logits_V=logit_rows, seed=st.integers(0, 1000), only=st.sampled_from([{"top_k": 1}, {"min_p": 1.0}]))
def test_top_k_of_1_and_min_p_of_1_are_greedy(logits_V: Tensor, seed: int, only: dict[str, Any]) -> None:
    token_id = Sampler(SamplingParams(seed=seed, **OFF | only)).sample(logits_V, [])
    greedy_id = Sampler(SamplingParams(temperature=0)).sample(logits_V, [])
    assert logits_V[token_id] == logits_V[greedy_id] == logits_V.max()


@given(logits_V=logit_rows)
def test_greedy_takes_the_first_of_the_likeliest(logits_V: Tensor) -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1)
    assert Sampler(params).sample(logits_V, [0, 1]) == logits_V.tolist().index(max(logits_V.tolist()))


def test_greedy_minds_the_repetition_penalty() -> None:
    logits_V = torch.tensor([1.0, 1.05, -1.0])
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1.1))
    assert [sampler.sample(logits_V, []), sampler.sample(logits_V, [1])] == [1, 0]


@pytest.mark.parametrize(("last", "chosen"), [(1, 1), (2, 1), (3, 0), (0, 0)])
def test_only_the_last_tokens_count_as_repetition(last: int, chosen: int) -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2, repetition_range_tokens=last)
    assert Sampler(params).sample(torch.tensor([1.0, 1.5, -1.0]), [1, 2, 2]) == chosen


def test_frequencies_follow_the_logits() -> None:
    shares = [0.4, 0.3, 0.15, 0.1, 0.05]
    logits_V = torch.tensor(shares).log()
    sampler = Sampler(SamplingParams(seed=1, **OFF))
    draws = 4000
    counts = torch.bincount(torch.tensor([sampler.sample(logits_V, range(n)) for n in range(draws)]), minlength=5)
    chi_square = sum(
        (count - draws * share) ** 2 / (draws * share) for count, share in zip(counts.tolist(), shares, strict=True)
    )
    assert chi_square < 18.47  # 4 degrees of freedom, one in a thousand


def drawn(sampler: Sampler, count: int = 50) -> list[int]:
    logits_V = torch.linspace(0, 1, 61)
    return [sampler.sample(logits_V, [0] * position) for position in range(count)]


def test_a_seed_decides() -> None:
    params = SamplingParams(seed=7)
    assert drawn(Sampler(params)) == drawn(Sampler(params)) != drawn(Sampler(SamplingParams(seed=8)))


def test_the_global_generator_has_no_say() -> None:
    first = drawn(Sampler(SamplingParams(seed=7)))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert drawn(Sampler(SamplingParams(seed=7))) == first
    assert torch.get_rng_state().equal(state)


def test_a_drawn_seed_can_be_read_and_used_again() -> None:
    sampler = Sampler(SamplingParams(seed=None))
    assert drawn(sampler) == drawn(Sampler(SamplingParams(seed=sampler.seed)))
    assert len({Sampler(SamplingParams()).seed for _ in range(5)}) > 1


def test_a_random_number_is_a_function_of_seed_and_position_alone() -> None:
    logits_V = torch.linspace(0, 1, 61)
    whole = drawn(Sampler(SamplingParams(seed=3)), 20)
    sampler = Sampler(SamplingParams(seed=3))
    assert [sampler.sample(logits_V, [0] * position) for position in reversed(range(20))] == whole[::-1]
    assert drawn(Sampler(SamplingParams(seed=3, max_new_tokens=1)), 20) == whole
    assert len(set(whole)) > 5


def test_a_random_number_on_the_very_end_finds_a_token_that_may_be_chosen(monkeypatch) -> None:
    monkeypatch.setattr(sampling, "_uniform", lambda *_: 1.0)
    logits_V = torch.tensor([0.0, 1.0, -50.0, 1.0, -60.0])
    assert Sampler(SamplingParams(seed=0, **OFF | {"top_k": 3})).sample(logits_V, []) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature))
    with pytest.raises(EpilogueError, match="1 of 3 logits after 2 tokens are not finite"):
        sampler.sample(torch.tensor([0.0, bad, 1.0]), [0, 1])


def test_padding_is_never_sampled_and_may_hold_anything() -> None:
    logits_V = torch.tensor([0.0, 0.0, 1e4, math.nan])
    sampler = Sampler(SamplingParams(seed=0, **OFF), num_tokens=2)
    assert {sampler.sample(logits_V, [0] * n) for n in range(50)} == {0, 1}
    assert Sampler(SamplingParams(temperature=0), num_tokens=2).sample(logits_V, []) == 0


def test_the_logits_are_not_changed() -> None:
    logits_V = torch.linspace(-1, 1, 9, dtype=torch.float64)
    before_V = logits_V.clone()
    Sampler(SamplingParams(ignore_eos=True), eos_id=3).sample(logits_V, [1, 2])
    assert logits_V.equal(before_V)


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        Sampler(SamplingParams(), num_tokens=0)
    with pytest.raises(ValueError, match="eos_id must be at least 0 or None, got -1"):
        Sampler(SamplingParams(), eos_id=-1)
    with pytest.raises(ValueError, match=r"logits of one token, \[V\], got \(1, 4\)"):
        Sampler(SamplingParams()).sample(torch.zeros(1, 4), [])


def test_a_bias_makes_a_token_likelier_and_a_ban_impossible() -> None:
    logits_V = torch.tensor([1.0, 0.0, 0.5])
    biased = Sampler(SamplingParams(temperature=0, logit_bias={1: 2.0, 99: 5.0}))
    banned = Sampler(SamplingParams(temperature=0, logit_bias={0: -math.inf}))
    assert [biased.sample(logits_V, []), banned.sample(logits_V, [])] == [1, 2]


def test_a_ban_of_everything_is_refused() -> None:
    sampler = Sampler(SamplingParams(logit_bias=dict.fromkeys(range(3), -math.inf)))
    with pytest.raises(RequestError, match="all 3 tokens are banned"):
        sampler.sample(torch.zeros(3), [])


def test_the_order_of_the_stages_is_followed() -> None:
    """A hot temperature before min_p lets through what it would not have after."""
    logits_V = torch.tensor([4.0, 0.0])
    settings: dict[str, Any] = OFF | {"temperature": 4.0, "min_p": 0.2, "seed": 0}
    first = Sampler(SamplingParams(**settings, order=("temperature", "top_p"))).probabilities(logits_V, [])
    last = Sampler(SamplingParams(**settings, order=("top_p", "temperature"))).probabilities(logits_V, [])
    assert (first > 0).tolist() == [True, True]
    assert (last > 0).tolist() == [True, False]


def test_xtc_acts_as_often_as_asked() -> None:
    logits_V = torch.tensor([2.0, 1.9, -5.0])
    sampler = Sampler(SamplingParams(seed=3, xtc_probability=0.3, xtc_threshold=0.2, **OFF))
    without = sum(float(sampler.probabilities(logits_V, range(n))[0]) == 0 for n in range(1000))
    assert 240 < without < 360
