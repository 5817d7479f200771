"""Drafts: the tokens are those without them, and the passes fewer where a text repeats itself."""

from dataclasses import replace

import pytest
import torch

from engine.invariants import check
from epilogue.engine import Engine, SamplingParams, Sequence
from epilogue.engine.reference import generate
from epilogue.kernels.paged_attention import Storage
from epilogue.model import MPT

# A tiny model left alone says one thing again and again: what drafts are for.
GREEDY = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=150)
COLD = replace(GREEDY, temperature=0.4, top_p=1, min_p=0, seed=1)
FILTERED = SamplingParams(
    temperature=0.6, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.05, seed=2, max_new_tokens=150
)
HOT = SamplingParams(temperature=3, top_p=1, min_p=0, seed=3, max_new_tokens=150)
SETTINGS = {"greedy": GREEDY, "cold": COLD, "filtered": FILTERED, "hot": HOT}


def engine_on(model: MPT, **settings) -> Engine:
    return Engine(model, **{"num_pages": 500, "chunk_tokens": 64} | settings)


def tokens_of(model: MPT, ids: list[int], params: SamplingParams, **settings) -> tuple[list[int], Sequence]:
    engine = engine_on(model, **settings)
    text = engine.open_book(ids)
    written = list(engine.stream(text, params))
    check(engine)
    assert text.ids == ids + written
    return written, text


@pytest.mark.parametrize("name", SETTINGS)
def test_same_tokens_as_without(any_mpt: MPT, book, name: str) -> None:
    model, params = any_mpt.double(), SETTINGS[name]
    if model.config.has_position_embedding:
        params = replace(params, max_new_tokens=70)
    written, text = tokens_of(model, book, params)
    assert written == tokens_of(model, book, params, lookup=False)[0] == generate(model, book, params)
    if name == "greedy":
        assert text.num_accepted > (0 if model.config.has_position_embedding else 30)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-7])
def test_same_tokens_from_every_storage(tiny_mpt, book, storage: Storage, epsilon: float) -> None:
    model = tiny_mpt(attn_config={"alibi_bias_max": 2}).double()
    for params in (GREEDY, COLD):
        written, text = tokens_of(model, book * 5, params, storage=storage, epsilon=epsilon, undo_tokens=0)
        assert written == tokens_of(model, book * 5, params, storage=storage, epsilon=0, lookup=False)[0]
        assert text.num_accepted > 0
