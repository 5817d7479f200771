"""Each filter against transformers' processor of the same name, or against its definition written out."""

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from epilogue.engine import Sampler, SamplingParams, filters, penalties


def random_logits(seed: int, *, size: int = 97) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(size, generator=generator, dtype=torch.float64)


def random_history(seed: int, *, size: int = 97) -> list[int]:
    return torch.randint(0, size, (40,), generator=torch.Generator().manual_seed(seed)).tolist()


def their_scores(processor, logits_V: Tensor, history: list[int]) -> Tensor:
    return processor(torch.tensor([history]), logits_V[None].clone())[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.5, 1.1, 3.0])
def test_repetition_penalty(penalty: float, seed: int) -> None:
    logits_V, history = random_logits(seed), random_history(seed)
    ours_V = penalties.penalize_repetition(logits_V, history, penalty=penalty)
    theirs_V = their_scores(RepetitionPenaltyLogitsProcessor(penalty), logits_V, history)
    torch.testing.assert_close(ours_V, theirs_V, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_k", [1, 2, 40, 97, 1000])
def test_top_k(top_k: int, seed: int) -> None:
    logits_V = random_logits(seed).round()  # with ties
    theirs_V = their_scores(TopKLogitsWarper(top_k), logits_V, [0])
    assert filters.keep_top_k(logits_V, top_k=top_k).equal(theirs_V)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.95, 0.999999])
def test_top_p(top_p: float, seed: int) -> None:
    logits_V = random_logits(seed)
    theirs_V = their_scores(TopPLogitsWarper(top_p), logits_V, [0])
    assert filters.keep_top_p(logits_V, top_p=top_p).equal(theirs_V)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_p", [1e-9, 0.05, 0.5, 1.0])
def test_min_p(min_p: float, seed: int) -> None:
    logits_V = random_logits(seed)
    theirs_V = their_scores(MinPLogitsWarper(min_p), logits_V, [0])
    assert filters.keep_min_p(logits_V, min_p=min_p).equal(theirs_V)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("typical", [1e-9, 0.2, 0.7, 0.999])
def test_typical(typical: float, seed: int) -> None:
    logits_V = random_logits(seed)
    theirs_V = their_scores(TypicalLogitsWarper(typical), logits_V, [0])
    assert filters.keep_typical(logits_V, typical=typical).equal(theirs_V)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_a", [1e-9, 0.1, 0.5, 1.0])
def test_top_a(top_a: float, seed: int) -> None:
    logits_V = random_logits(seed)
    probs = logits_V.softmax(0).tolist()
    kept = [p >= top_a * max(probs) ** 2 for p in probs]
    assert filters.keep_top_a(logits_V, top_a=top_a).isfinite().tolist() == kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tail_free", [1e-9, 0.3, 0.9, 0.999])
def test_tail_free(tail_free: float, seed: int) -> None:
    logits_V = random_logits(seed)
    order = sorted(range(97), key=lambda i: -float(logits_V[i]))
    probs = [float(logits_V.softmax(0)[i]) for i in order]
    falls = [a - b for a, b in pairwise(probs)]
    bends = [abs(a - b) for a, b in pairwise(falls)]
    shares = [share / sum(bends) for share in accumulate(bends)]
    kept = order[: max(1, next(i for i, share in enumerate(shares) if share > tail_free))]
    result_V = filters.keep_before_tail(logits_V, tail_free=tail_free)
    assert result_V.isfinite().nonzero()[:, 0].tolist() == sorted(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.1, 0.6])
def test_of_top_choices_the_least_likely_stays(threshold: float, seed: int) -> None:
    logits_V = random_logits(seed)
    probs_V = logits_V.softmax(0)
    likely = sorted((i for i in range(97) if probs_V[i] >= threshold), key=lambda i: float(probs_V[i]))
    gone = (~filters.exclude_top_choices(logits_V, threshold=threshold).isfinite()).nonzero()[:, 0].tolist()
    assert gone == sorted(likely[1:])


@pytest.mark.parametrize("logits", [[0.0], [1.0, 1.0], [5.0, -torch.inf, -torch.inf], [0.0] * 40])
@pytest.mark.parametrize(
    "keep",
    [
        lambda x: filters.keep_top_a(x, top_a=1.0),
        lambda x: filters.keep_before_tail(x, tail_free=0.5),
        lambda x: filters.keep_typical(x, typical=0.01),
        lambda x: filters.exclude_top_choices(x, threshold=0.0),
    ],
)
def test_something_is_always_left(keep, logits: list[float]) -> None:
    kept_V = keep(torch.tensor(logits, dtype=torch.float64))
    assert kept_V.max() > -torch.inf
    assert not kept_V.isnan().any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 2.5])
def test_all_in_order(temperature: float, seed: int) -> None:
    logits_V, history = random_logits(seed), random_history(seed)
    params = SamplingParams(temperature=temperature, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=0)
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ]
    )
    theirs_V = their_scores(chain, logits_V, history).softmax(0)
    torch.testing.assert_close(Sampler(params).probabilities(logits_V, history), theirs_V)


def test_a_filter_leaves_its_argument_alone() -> None:
    logits_V = random_logits(0)
    before_V = logits_V.clone()
    penalties.penalize_repetition(logits_V, [1, 2], penalty=2.0)
    filters.keep_top_k(logits_V, top_k=3)
    filters.keep_top_p(logits_V, top_p=0.3)
    filters.keep_min_p(logits_V, min_p=0.3)
    assert logits_V.equal(before_V)


def test_ids_without_a_score_have_none_to_change() -> None:
    logits_V = random_logits(0)
    assert penalties.penalize_repetition(logits_V, [97, 1000, -1], penalty=2.0).equal(logits_V)


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.0, 0.2, 3.0])
def test_top_p_of_many_tokens_keeps_those_of_a_sort(top_p: float, spread: float) -> None:
    scores_V = (torch.randn(3000, dtype=torch.float64) * spread * 4).round() / 4  # many alike
    probs_V, order_V = scores_V.softmax(0).sort(stable=True)
    num_dropped = int((probs_V.cumsum(0) <= 1 - top_p).sum())
    kept_V = filters.keep_top_p(scores_V, top_p=top_p)
    dropped = set((kept_V == -torch.inf).nonzero()[:, 0].tolist())
    # A sum in another order may fall on the other side for the last one.
    assert abs(len(dropped) - num_dropped) <= 1
    assert dropped <= set(order_V[: num_dropped + 1].tolist())
