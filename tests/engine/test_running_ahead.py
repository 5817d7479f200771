"""Reading that runs ahead of eviction: what a device lets go is given back a chunk later, and nothing else changes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.invariants import check
from epilogue.engine import Engine, SamplingParams
from epilogue.engine.answers import Answer
from epilogue.engine.steps import Stepper
from epilogue.errors import CapacityError

OPTIONS = {"epsilon": 1e-3, "chunk_tokens": 256, "undo_tokens": 0, "spacings": ()}


@pytest.fixture
def make(tiny_mpt, monkeypatch) -> Callable[..., Engine]:
    """Engines that read in chunks and forget fast; of a device whose answers come later, unless it is told."""
    model = tiny_mpt(n_heads=2, n_layers=2, attn_config={"alibi_bias_max": 1})

    def make(num_pages: int = 200, *, is_late: bool = True) -> Engine:
        monkeypatch.setattr(Answer, "is_here", not is_late)
        return Engine(model, num_pages=num_pages, **OPTIONS)

    return make


@pytest.fixture
def text() -> list[int]:
    return torch.randint(0, 61, (1500,), generator=torch.Generator().manual_seed(5)).tolist()


def read(engine: Engine, ids: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """What comes next, which pages are left, and how many were held behind every chunk."""
    held: list[int] = []
    sequence = engine.open_book(ids, on_progress=lambda *_: held.append(in_tables(engine)))
    assert sequence.logits_V is not None
    is_live_LKP = sequence.table.ids_LKP[..., : sequence.table.num_pages] >= 0
    check(engine)
    return sequence.logits_V, is_live_LKP, held


def in_tables(engine: Engine) -> int:
    return sum(int((text.table.ids_LKP >= 0).sum()) for text in engine._sequences)


def test_a_read_book_is_the_same(make, text) -> None:
    """And one more chunk was held on the way, no more than that."""
    now_V, live_now, held_now = read(make(is_late=False), text)
    later_V, live_later, held_later = read(make(), text)
    assert torch.equal(now_V, later_V)
    assert torch.equal(live_now, live_later)
    assert held_now[-1] == held_later[-1] < 0.5 * live_now.numel(), "pages were forgotten"
    chunk_pages = 4 * 2  # heads and pages of a chunk
    assert all(now <= later <= now + chunk_pages for now, later in zip(held_now, held_later, strict=True))
    assert held_later[2] > held_now[2]


def test_where_pages_are_short_they_are_waited_for(make, text, monkeypatch) -> None:
    """Eviction a chunk later asks for no larger pool."""
    monkeypatch.setattr(Stepper, "check_fits", lambda *_: None)  # it counts with texts that keep more
    expected_V, _, held = read(make(is_late=False), text)
    fewest = next(n for n in range(max(held), 48) if fits(make(n, is_late=False), text))
    assert max(read(make(), text)[2]) >= fewest, "there would be too few otherwise"
    assert torch.equal(read(make(fewest), text)[0], expected_V)
    assert not fits(make(fewest - 1), text)


def fits(engine: Engine, ids: list[int]) -> bool:
    try:
        engine.open_book(ids)
    except CapacityError:
        assert engine.pages.num_held == 0
        return False
    return True


def test_a_text_that_is_cut_on_the_way_keeps_what_it_then_needs(make, text) -> None:
    """What was to go from the longer text would be other pages of the shorter one."""
    engine, alone = make(), make()
    sequence = engine.enter(text)
    for _ in range(4):
        engine.advance(sequence)
    assert len(engine.pages._leaving) == 1
    engine.truncate(sequence, 300)
    engine.append(sequence, text[700:])
    check(engine)
    expected_V = alone.open_book(text[:300] + text[700:]).logits_V
    torch.testing.assert_close(sequence.logits_V, expected_V, rtol=1e-2, atol=1e-2)
    engine.close(sequence)
    assert engine.pages.num_held == 0


def test_a_text_that_is_forgotten_on_the_way_leaves_no_page(make, text) -> None:
    engine = make()
    sequence = engine.enter(text)
    for _ in range(3):
        engine.advance(sequence)
    twin = engine.fork(sequence)
    del sequence
    engine.append(twin, [])
    check(engine)
    engine.close(twin)
    assert engine.pages.num_held == 0


def test_a_writer_goes_on_meanwhile(make, text) -> None:
    """Tokens that are written between the chunks of another text are those written alone."""
    params = SamplingParams(temperature=0, max_new_tokens=8)
    alone = make()
    expected = list(alone.stream(alone.open_book(text[:100]), params))
    engine = make()
    written, stream = [], engine.stream(engine.open_book(text[:100]), params)
    book = engine.open_book(text[::-1], on_progress=lambda *_: written.append(next(stream)))
    written += stream
    assert written == expected
    check(engine)
    assert book.num_pending == 0
