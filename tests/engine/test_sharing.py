"""Forks, prefixes, going back, scores and figures: what is read once stays read, and nothing else is shared."""

import copy
from dataclasses import replace

import pytest
import torch

from engine.invariants import check
from epilogue.engine import Engine, SamplingParams, Stats
from epilogue.engine.prefixes import Prefixes
from epilogue.model import MPT

SAMPLED = SamplingParams(temperature=2.0, seed=11, max_new_tokens=20)
PAGES_A_COLUMN = 6  # two layers of three heads


@pytest.fixture
def novel() -> list[int]:
    """Three pages and a bit."""
    return torch.randint(0, 61, (400,), generator=torch.Generator().manual_seed(6)).tolist()


def counted(model: MPT) -> list[int]:
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    return passes


def engine_on(model: MPT, **settings) -> Engine:
    return Engine(model, **{"num_pages": 100, "chunk_tokens": 1000, "epsilon": 0} | settings)


def test_texts_that_begin_alike_share_full_pages(tiny_mpt, novel) -> None:
    engine = engine_on(tiny_mpt())
    passes = counted(engine.model)
    texts = [engine.open_book(ids) for ids in (novel, novel, novel[:256], novel[:256] + [1] * 100, novel[1:])]
    assert passes == [400, 16, 128, 100, 399]
    assert engine.pages.num_held == PAGES_A_COLUMN * (4 + 1 + 1 + 1 + 4)
    check(engine)
    for text in texts:
        alone_V = engine_on(engine.model).open_book(text.ids).logits_V
        torch.testing.assert_close(text.logits_V, alone_V, rtol=1e-4, atol=1e-4)


def test_closed_and_forgotten_texts_are_shared_no_more_but_their_sharers_live(tiny_mpt, novel) -> None:
    engine = engine_on(tiny_mpt())
    first, twin = engine.open_book(novel), engine.open_book(novel[:300])
    engine.close(first)
    assert engine.pages.num_held == PAGES_A_COLUMN * 3
    passes = counted(engine.model)
    again = engine.open_book(novel)
    assert passes == [400 - 256]
    del twin
    assert engine.pages.num_held == PAGES_A_COLUMN * 4
    del again
    assert engine.pages.num_held == 0
    engine.open_book(novel)
    assert passes[1:] == [400]
    check(engine)


def test_a_cut_text_is_found_by_what_is_left(tiny_mpt, novel) -> None:
    engine = engine_on(tiny_mpt())
    text = engine.open_book(novel)
    engine.truncate(text, 300)
    engine.append(text, [5] * 90)
    passes = counted(engine.model)
    engine.open_book(novel)
    engine.open_book(novel[:300] + [5] * 90)
    assert passes == [400 - 256, 390 - 384]
    check(engine)


def test_fingerprints_of_forgotten_texts_are_swept_out(tiny_mpt) -> None:
    engine = engine_on(tiny_mpt())
    prefixes = Prefixes()
    for first in range(61):
        text = engine.open_book([first] * 512)
        prefixes.add(text)
        engine.close(text)
    assert len(prefixes._texts) <= 64 + 3 * 4
    assert len(engine._prefixes._texts) == 0


def test_a_fork_reads_nothing_and_copies_one_page_when_it_grows(tiny_mpt, novel) -> None:
    engine = engine_on(tiny_mpt())
    text = engine.open_book(novel)
    passes = counted(engine.model)
    twins = [engine.fork(text) for _ in range(3)]
    assert passes == []
    assert engine.pages.num_held == PAGES_A_COLUMN * 4
    written = [list(engine.stream(twin, replace(SAMPLED, seed=seed))) for seed, twin in enumerate(twins)]
    assert engine.pages.num_held == PAGES_A_COLUMN * (4 + 3 * 1 + 3 * (419 > 512))
    for seed, story in enumerate(written):
        alone = engine_on(engine.model)
        assert story == list(alone.stream(alone.open_book(novel), replace(SAMPLED, seed=seed)))
    assert text.ids == novel
    check(engine)


def test_a_fork_of_a_text_with_unread_tokens(tiny_mpt, novel) -> None:
    engine = engine_on(tiny_mpt())
    text = engine.open_book(novel[:384])
    writing = engine.stream(text, SAMPLED)
    begun = [next(writing), next(writing)]
    twin = engine.fork(text)
    assert (twin.num_pending, twin.ids) == (1, novel[:384] + begun)
    params = replace(SAMPLED, max_new_tokens=3)
    assert list(engine.stream(twin, params)) == [next(writing) for _ in range(3)]
    check(engine)


@pytest.mark.parametrize("position", [1, 127, 128, 129, 257, 399, 400])
def test_going_back(tiny_mpt, novel, position: int) -> None:
    engine = engine_on(tiny_mpt())
    text = engine.open_book(novel)
    passes = counted(engine.model)
    engine.truncate(text, position)
    assert passes == ([] if position == 400 else [1])
    assert (text.ids, text.num_pending) == (novel[:position], 0)
    alone_V = engine_on(engine.model).open_book(novel[:position]).logits_V
    torch.testing.assert_close(text.logits_V, alone_V, rtol=1e-4, atol=1e-4)
    assert engine.pages.num_held == PAGES_A_COLUMN * -(-position // 128)
    check(engine)


@pytest.mark.parametrize("position", [0, -1, 401])
def test_there_is_no_such_place_to_go_back_to(tiny_mpt, novel, position: int) -> None:
    engine = engine_on(tiny_mpt())
    with pytest.raises(ValueError, match=rf"position must be in 1\.\.400, got {position}"):
        engine.truncate(engine.open_book(novel), position)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 130, 1000])
@torch.inference_mode()
def test_scores(tiny_mpt, novel, chunk_tokens: int) -> None:
    model, ids = tiny_mpt(), novel[:140]
    exact_TV = copy.deepcopy(model).double()(torch.tensor([ids]))[0].log_softmax(-1)
    exact_T = exact_TV[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    engine = engine_on(model, chunk_tokens=chunk_tokens)
    scores_T = engine.score(ids)
    assert (scores_T.dtype, scores_T.shape) == (torch.float32, (139,))
    torch.testing.assert_close(scores_T.double(), exact_T, rtol=1e-4, atol=1e-4)
    assert engine.pages.num_held == 0
    text = engine.open_book(ids[:50])
    before_V = text.logits_V
    torch.testing.assert_close(engine.score(ids[50:], after=text).double(), exact_T[49:], rtol=1e-4, atol=1e-4)
    assert (text.ids, text.logits_V is before_V) == (ids[:50], True)
    assert engine.score(ids[50:51], after=text).shape == (1,)
    check(engine)


def test_scores_take_writers_along(tiny_mpt, novel) -> None:
    engine = engine_on(tiny_mpt(), chunk_tokens=50)
    text = engine.open_book(novel[:20])
    writing = engine.stream(text, SAMPLED)
    begun = next(writing)
    engine.score(novel[:100])
    assert text.num_pending == 0
    alone = engine_on(engine.model)
    assert [begun, *writing] == list(alone.stream(alone.open_book(novel[:20]), SAMPLED))


def test_nothing_to_score(tiny_mpt) -> None:
    engine = engine_on(tiny_mpt())
    text = engine.open_book([1])
    for ids, after in (([], None), ([1], None), ([], text)):
        with pytest.raises(ValueError, match="leave nothing to score"):
            engine.score(ids, after=after)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        engine.score([1, 61])
    assert engine.pages.num_held == PAGES_A_COLUMN


def test_figures(tiny_mpt, novel) -> None:
    model = tiny_mpt(attn_config={"alibi_bias_max": 2})
    engine = engine_on(model, epsilon=1e-3, undo_tokens=0, chunk_tokens=100, storage="bfloat16")
    nothing = engine.stats()
    assert (nothing.num_sequences, nothing.bytes_held, nothing.share_visited, nothing.omitted_mass) == (0, 0, 1.0, 0.0)
    text = engine.open_book(novel * 3)
    figures = engine.stats()
    assert isinstance(figures, Stats)
    assert (figures.num_sequences, figures.num_tokens) == (1, 1200)
    assert figures.bytes_dense_bf16 == 1200 * 2 * 2 * 24 * 2
    assert figures.bytes_held == figures.pages_held * 2 * 128 * 8 * 2 < figures.bytes_dense_bf16
    assert figures.pages_held + figures.pages_free == 100
    assert 0 < figures.omitted_mass <= 1e-3
    assert 0.2 < figures.share_visited < 0.9
    twin = engine.fork(text)
    assert engine.stats().pages_held == figures.pages_held
    assert engine.stats().bytes_dense_bf16 == 2 * figures.bytes_dense_bf16
    assert twin.reads.share == 1
