"""Going back further than eviction lags: the text is read again from the bookmark before the change, no further."""

from typing import Any

import pytest
import torch

from engine.invariants import check
from epilogue.engine import Engine
from epilogue.model import MPT

LENGTH = 1500


def engine_on(model: MPT, **settings: Any) -> Engine:
    defaults = {"num_pages": 200, "epsilon": 1e-4, "chunk_tokens": 100, "undo_tokens": 64, "spacings": (128, 256, 512)}
    return Engine(model, **defaults | settings)


@pytest.fixture
def model(tiny_mpt) -> MPT:
    return tiny_mpt(n_heads=1, n_layers=2, attn_config={"alibi_bias_max": 1}).double()


@pytest.fixture
def novel() -> list[int]:
    return torch.randint(0, 61, (LENGTH,), generator=torch.Generator().manual_seed(8)).tolist()


def tokens_read(engine: Engine) -> list[int]:
    passes: list[int] = []
    engine.model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    return passes


def assert_as_read_whole(engine: Engine, text: Any) -> None:
    expected_V = engine_on(engine.model, epsilon=0).open_book(text.ids).logits_V
    assert (text.logits_V - expected_V).abs().max() <= 20 * engine.epsilon * expected_V.abs().max()


# Of 1,436 tokens the bookmarks are 512, 1024, 1280 and 1408, each with the page or two before it.
@pytest.mark.parametrize(
    ("position", "start"),
    [(1450, 1449), (1300, 1299), (1281, 1280), (1200, 1024), (1100, 1024), (1000, 999), (800, 512), (350, 0)],
)
def test_cutting(model: MPT, novel: list[int], position: int, start: int) -> None:
    engine = engine_on(model)
    text = engine.open_book(novel)
    held = engine.pages.num_held
    assert held < 2 * 12, "something was given back"
    passes = tokens_read(engine)
    engine.truncate(text, position)
    assert sum(passes) == position - start
    check(engine)
    assert_as_read_whole(engine, text)
    engine.append(text, novel[: LENGTH - position])
    assert_as_read_whole(engine, text)
    check(engine)


@pytest.mark.parametrize(("edit", "start"), [(1490, 1408), (1300, 1280), (900, 512), (3, 0)])
def test_opening_an_edited_text(model: MPT, novel: list[int], edit: int, start: int) -> None:
    engine = engine_on(model)
    first = engine.open_book(novel)
    passes = tokens_read(engine)
    edited = [*novel[:edit], 60 - novel[edit], *novel[edit + 1 :]]
    text = engine.open_book(edited)
    assert sum(passes) == LENGTH - start
    assert_as_read_whole(engine, text)
    check(engine)
    engine.close(first)
    engine.truncate(text, 1300)
    assert_as_read_whole(engine, text)
    check(engine)


def test_of_two_texts_the_one_that_saves_more_is_shared(model: MPT, novel: list[int]) -> None:
    engine = engine_on(model, spacings=())
    texts = [engine.open_book(novel), engine.open_book(novel[:700])]  # the first is alike for longer, but is not whole
    passes = tokens_read(engine)
    text = engine.open_book(novel[:1000])
    assert sum(passes) == 1000 - 640
    assert len(texts) == 2
    assert_as_read_whole(engine, text)


def test_none(model: MPT, novel: list[int]) -> None:
    with_none, with_some = engine_on(model, spacings=()), engine_on(model)
    texts = [engine.open_book(novel) for engine in (with_none, with_some)]
    assert with_none.pages.num_held < with_some.pages.num_held
    torch.testing.assert_close(texts[0].logits_V, texts[1].logits_V, rtol=0, atol=0)
    passes = tokens_read(with_none)
    with_none.truncate(texts[0], 1300)
    assert sum(passes) == 1300
