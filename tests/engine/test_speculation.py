"""Drafts: the tokens are those without them, and the passes fewer where a text repeats itself."""

from dataclasses import replace

import pytest

from engine.invariants import check
from epilogue.engine import Engine, SamplingParams, Sequence
from epilogue.engine.reference import generate
from epilogue.engine.speculation import Odds, PassCost
from epilogue.errors import CapacityError
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


def tokens_of(
    model: MPT, ids: list[int], params: SamplingParams, *, eos_id: int | None = None, **settings
) -> tuple[list[int], Sequence]:
    engine = engine_on(model, **settings)
    text = engine.open_book(ids)
    written = list(engine.stream(text, params, eos_id=eos_id))
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


def passes_of(engine: Engine, text: Sequence, params: SamplingParams) -> list[int]:
    """How many tokens each pass took."""
    passes: list[int] = []
    hook = engine.model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    list(engine.stream(text, params))
    hook.remove()
    return passes


def test_a_text_that_repeats_takes_few_passes(tiny_mpt, book) -> None:
    engine = engine_on(tiny_mpt().double())
    text = engine.open_book(book)
    assert len(passes := passes_of(engine, text, GREEDY)) < 100
    assert max(passes) <= 16
    assert engine.stats().accepted_tokens == text.num_accepted == 150 - 1 - len(passes)
    assert engine.stats().drafted_tokens == text.num_drafted == sum(passes) - len(passes)


def test_a_text_that_does_not_repeat_costs_nothing(tiny_mpt, book) -> None:
    engine = engine_on(tiny_mpt().double())
    params = replace(HOT, temperature=50, max_new_tokens=300)
    passes = passes_of(engine, engine.open_book(book), params)
    cost = PassCost()
    extra = sum(cost.any_draft + cost.each_token * (tokens - 1) for tokens in passes if tokens > 1)
    assert extra < 0.02 * 300


def test_drafts_stop_where_they_are_wrong_and_begin_again_where_they_are_right() -> None:
    odds, cost = Odds(), PassCost()
    for _ in range(60):
        odds.count(12, was_right=False)
    assert odds.best_draft(12, 15, cost) == 0
    for _ in range(60):
        odds.count(12, was_right=True)
    assert odds.best_draft(12, 4, cost) == 4
    assert odds.best_draft(1, 15, cost) == 0, "other lengths are counted apart"


@pytest.mark.parametrize("changed", ["cut", "appended", "forked", "left"])
def test_whatever_happens_between_two_drafts(tiny_mpt, book, changed: str) -> None:
    """A stream is left with drafted tokens, right and wrong ones, behind the text."""
    model = tiny_mpt(attn_config={"alibi_bias_max": 2}).double()
    start, params = book * 3, replace(GREEDY, max_new_tokens=20)
    plain = engine_on(model, lookup=False)
    story = list(plain.stream(plain.open_book(start), params))
    for stop in (1, 4, 7):
        engine = engine_on(model, undo_tokens=0, epsilon=1e-7)
        text = engine.open_book(start)
        text.forget_next()
        engine.pages.truncate(text.table, text.num_tokens - 1)
        text.draft = [*story[:8], 60, 60]
        stream = engine.stream(text, params)
        begun = [next(stream) for _ in range(stop)]
        stream.close()
        assert text.ids == start + begun
        assert len(text.ahead) == 10 - stop
        twin = engine.fork(text) if changed == "forked" else text
        if changed == "cut":
            engine.truncate(text, len(start) + stop // 2)
        if changed == "appended":
            engine.append(text, [7, 8, 7, 8])
        for each in (text, twin) if changed == "forked" else (text,):
            expected = list(plain.stream(plain.open_book(each.ids), params))
            assert list(engine.stream(each, params)) == expected
        check(engine)


def test_texts_that_are_written_together(tiny_mpt, book) -> None:
    model = tiny_mpt().double()
    settings = [replace(params, max_new_tokens=60) for params in SETTINGS.values()]
    expected = [tokens_of(model, book, params, lookup=False)[0] for params in settings]
    engine = engine_on(model)
    root = engine.open_book(book)
    texts = [engine.fork(root) for _ in settings]
    streams = [engine.stream(text, params) for text, params in zip(texts, settings, strict=True)]
    assert [list(story) for story in zip(*zip(*streams, strict=True), strict=True)] == expected
    assert sum(text.num_accepted for text in texts) > 30


def test_end_of_text_in_a_draft(tiny_mpt, book) -> None:
    model = tiny_mpt().double()
    story = tokens_of(model, book, COLD, lookup=False)[0]
    for eos_id in set(story):
        expected = tokens_of(model, book, COLD, lookup=False, eos_id=eos_id)[0]
        assert tokens_of(model, book, COLD, eos_id=eos_id)[0] == expected


def test_a_draft_takes_no_page_and_no_more_tokens_than_are_wanted(tiny_mpt, book) -> None:
    model = tiny_mpt().double()
    engine = engine_on(model, num_pages=6)  # two layers, three heads: one page
    text = engine.open_book(book)
    with pytest.raises(CapacityError):
        list(engine.stream(text, GREEDY))
    assert text.ids[30:] == tokens_of(model, book, GREEDY, lookup=False)[0][: 128 - 30 + 1]
    for most in range(1, 20):
        assert len(tokens_of(model, book * 2, replace(GREEDY, max_new_tokens=most))[0]) == most
