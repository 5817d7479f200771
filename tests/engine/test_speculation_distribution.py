"""A chi-square test: with drafts, too, texts are distributed as the model says, and a wrong rule is found out."""

import math
from collections import Counter
from itertools import product

import pytest
import torch

from epilogue.engine import Engine, Sampler, SamplingParams, Sequence
from epilogue.model import MPT

VOCAB = 4
SEEDS = 400
# The test fails where a true model would fail once in so many times; seeds are fixed, so it fails always or never.
SIGNIFICANCE = 1e-3
PLAIN = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.fixture
def model(tiny_mpt) -> MPT:
    return tiny_mpt(vocab_size=VOCAB, d_model=8, n_heads=1, n_layers=1).double()


def exact_shares(model: MPT, ids: list[int], params: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of every three tokens, by the model alone."""
    shares = {}
    sampler = Sampler(params)
    for tokens in product(range(VOCAB), repeat=3):
        share, text = 1.0, list(ids)
        for token_id in tokens:
            with torch.inference_mode():
                logits_V = model(torch.tensor([text]))[0, -1]
            share *= float(sampler.probabilities(logits_V, text)[token_id])
            text.append(token_id)
        shares[tokens] = share
    return shares


def with_drafts(engine: Engine, root: Sequence, params: SamplingParams, draft: list[int]) -> tuple[int, ...]:
    """Three tokens, the second and third of which were drafted."""
    text = engine.fork(root)
    text.forget_next()
    engine.pages.truncate(text.table, text.num_tokens - 1)
    text.draft = draft
    tokens = tuple(engine.stream(text, params))
    engine.close(text)
    return tokens


def p_value(counts: Counter[tuple[int, ...]], shares: dict[tuple[int, ...], float]) -> float:
    """Pearson's test; what is expected less than five times counts as one."""
    total = sum(counts.values())
    assert all(shares[tokens] > 0 for tokens in counts), "a token without probability"
    large = [tokens for tokens, share in shares.items() if share * total >= 5]
    observed = [counts[tokens] for tokens in large]
    expected = [shares[tokens] * total for tokens in large]
    if (rest := total - sum(expected)) >= 1:
        observed.append(total - sum(observed))
        expected.append(rest)
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    half_df, half = torch.tensor((len(observed) - 1) / 2), torch.tensor(statistic / 2)
    return float(torch.special.gammaincc(half_df.double(), half.double()))


@pytest.mark.parametrize("settings", [PLAIN, PLAIN | {"temperature": 0.7, "top_k": 3, "repetition_penalty": 1.3}])
def test_three_tokens_are_distributed_as_the_model_says(model: MPT, settings) -> None:
    book = [0, 1, 2, 3, 0, 1]
    params = [SamplingParams(**settings, seed=seed, max_new_tokens=3) for seed in range(SEEDS)]
    shares = exact_shares(model, book, params[0])
    assert math.isclose(sum(shares.values()), 1)
    likely = max(shares, key=shares.__getitem__)
    engine = Engine(model, num_pages=8)
    root = engine.open_book(book)
    counts = Counter(with_drafts(engine, root, each, list(likely[:2])) for each in params)
    assert counts[likely] > 0, "drafts were accepted"
    assert p_value(counts, shares) > SIGNIFICANCE


def test_a_rule_that_favours_drafts_is_found_out(model: MPT, monkeypatch) -> None:
    """One draft in five is taken although another token was chosen."""
    book = [0, 1, 2, 3, 0, 1]
    params = [SamplingParams(**PLAIN, seed=seed, max_new_tokens=3) for seed in range(SEEDS)]
    shares = exact_shares(model, book, params[0])
    engine = Engine(model, num_pages=8)
    root = engine.open_book(book)
    likely = max(shares, key=shares.__getitem__)
    honest = Sampler.sample

    def biased(self: Sampler, logits_V, history) -> int:
        place = len(history) - len(book)
        is_biased = place < 2 and self.seed % 5 == 0
        return likely[place] if is_biased else honest(self, logits_V, history)

    monkeypatch.setattr(Sampler, "sample", biased)
    counts = Counter(with_drafts(engine, root, each, list(likely[:2])) for each in params)
    assert p_value(counts, shares) < SIGNIFICANCE
