"""Steps of one token each: replayed without a number on the host, they give what the engine gives step by step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.conftest import ARCHITECTURES, MakeMPT
from engine.invariants import check
from engine.tape import Captures
from epilogue.engine import Engine, SamplingParams, Storage
from epilogue.engine.decoder import Decoder
from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import MPT, EvictionBounds, PagePool, TokenTables, eviction_bounds, run_tokens

STORAGES: list[Storage] = ["float32", "bfloat16", "int8", "int4"]
MORE = {
    "twelve heads": {"n_heads": 12},
    "normalised queries": {"attn_config": {"qk_ln": True}},
    "normalised heads": {"n_heads": 8, "attn_config": {"qk_gn": True, "clip_qkv": 2.0}},
    "root mean squares": {"norm_type": "rmsnorm"},
    "untied": {"tie_word_embeddings": False, "no_bias": False},
}


@pytest.fixture(autouse=True)
def pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape writes down PyTorch's operators only, as a graph does, and on a GPU the C++ extension never runs."""
    for op in ("few_row_linear", "reach_decode"):
        monkeypatch.setattr(f"epilogue.kernels.{op}.op.native_is_available", lambda: False)


def engines(model: MPT, **options: Any) -> tuple[Engine, Engine, Captures]:
    """One that runs every step as it is, and one that replays steps of one token each."""
    plain, replaying = (
        Engine(
            model,
            **{"num_pages": 600, "epsilon": 1e-3, "chunk_tokens": 100, "undo_tokens": 0, "lookup": False} | options,
        )
        for _ in range(2)
    )
    captures = Captures()
    replaying._stepper.decoder = Decoder(
        model, replaying.pages.pool, replaying.bounds, epsilon=replaying.epsilon, capture=captures, backend="reference"
    )
    return plain, replaying, captures


def write(engine: Engine, sequence: Any, num_tokens: int, seed: int = 3) -> list[int]:
    return list(engine.stream(sequence, SamplingParams(max_new_tokens=num_tokens, seed=seed, top_p=0.9)))


def alone(engine: Engine, book: list[int], num_tokens: int) -> list[list[int]]:
    """What is written behind a book, and what was looked at and held for it."""
    text = engine.open_book(book)
    written = write(engine, text, num_tokens)
    return [written, text.reads.visited_H.tolist(), text.table.first_live_LK.flatten().tolist()]


def assert_same(plain: Engine, replaying: Engine, story: Callable[[Engine], list[list[int]]]) -> None:
    assert story(plain) == story(replaying)
    check(replaying)
    one, other = plain.stats(), replaying.stats()
    assert (one.pages_held, one.num_tokens) == (other.pages_held, other.num_tokens)
    assert other.share_visited == pytest.approx(one.share_visited, abs=1e-3)
    assert other.omitted_mass <= replaying.epsilon


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE])
def test_every_architecture_writes_the_same(tiny_mpt: MakeMPT, book: list[int], architecture: str) -> None:
    model = tiny_mpt(**(ARCHITECTURES | MORE)[architecture])
    plain, replaying, captures = engines(model)
    assert_same(plain, replaying, lambda engine: alone(engine, book, 150))
    assert captures.num_replays >= (69 if "learned" in architecture else 149)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-2])
def test_every_storage_writes_the_same(tiny_mpt: MakeMPT, book: list[int], storage: Storage, epsilon: float) -> None:
    model = tiny_mpt(n_heads=2, attn_config={"alibi_bias_max": 4, "clip_qkv": 1.0})
    plain, replaying, _ = engines(model, storage=storage, epsilon=epsilon)
    assert_same(plain, replaying, lambda engine: alone(engine, book, 270))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_write_the_same(tiny_mpt: MakeMPT, book: list[int], dtype: torch.dtype) -> None:
    """With the same attention underneath: the CPU's own differs from the reference where bf16 rounds."""
    model = tiny_mpt().to(dtype)
    plain, replaying, _ = engines(model, storage="bfloat16")
    direct = Decoder(
        model, plain.pages.pool, plain.bounds, epsilon=1e-3, capture=lambda step: step, backend="reference"
    )
    plain._stepper.decoder = direct
    assert_same(plain, replaying, lambda engine: alone(engine, book, 150))


def branching(engine: Engine, book: list[int]) -> list[list[int]]:
    """Texts come and go, grow across pages, share them, are cut and read on."""
    params = SamplingParams(max_new_tokens=500, seed=9, top_p=0.9)
    first = engine.open_book(book * 4)
    second = engine.fork(first)
    streams = [engine.stream(text, params) for text in (first, second)]
    written: list[list[int]] = [[], []]
    for turn in range(180):
        for text, stream in zip(written, streams, strict=True):
            text.append(next(stream))
        if turn == 40:  # one more, which reads while the others wait
            streams.append(engine.stream(engine.open_book(book[::-1] * 5), params))
            written.append([])
        if turn == 90:
            streams[1].close()
            engine.truncate(second, 140)
            engine.append(second, [5, 6, 7])
            streams[1] = engine.stream(second, params)
        if turn == 120:
            streams[0].close()
            streams[0] = engine.stream(engine.fork(second), params)
            engine.close(first)
    for stream in streams:
        stream.close()
    return [*written, write(engine, second, 30), engine.score(book[:9], after=second).mul(1e3).round().int().tolist()]


def test_texts_that_fork_and_are_cut_write_the_same(tiny_mpt: MakeMPT, book: list[int]) -> None:
    plain, replaying, captures = engines(tiny_mpt(n_heads=8, attn_config={"clip_qkv": 1.0}))
    assert_same(plain, replaying, lambda engine: branching(engine, book))
    assert captures.num_replays > 150


def test_pages_are_given_back_meanwhile(tiny_mpt: MakeMPT, book: list[int]) -> None:
    plain, replaying, _ = engines(tiny_mpt(n_heads=2, attn_config={"alibi_bias_max": 2, "clip_qkv": 0.5}), epsilon=1e-2)
    told: list[list[int]] = []

    def story(engine: Engine) -> list[list[int]]:
        told[:] = alone(engine, book, 420)
        return told.copy()

    assert_same(plain, replaying, story)
    assert max(told[2]) > 0, "nothing was given back"


def test_a_step_is_captured_once_for_a_number_of_texts_and_a_width(tiny_mpt: MakeMPT, book: list[int]) -> None:
    _, engine, captures = engines(tiny_mpt())
    first = engine.open_book(book)
    write(engine, first, 3)
    assert len(captures.tapes) == 1
    write(engine, engine.fork(first), 3)  # other texts take the same slots
    engine.truncate(first, 20)
    write(engine, first, 3)
    assert len(captures.tapes) == 1
    write(engine, first, 2 * PAGE_TOKENS)
    assert len(captures.tapes) == 3  # tables of 1, 2 and 4 pages
    streams = [engine.stream(text, SamplingParams(max_new_tokens=4, seed=0)) for text in (first, engine.fork(first))]
    for _ in range(3):
        for stream in streams:
            next(stream)
    assert len(captures.tapes) == 4


def test_captures_are_bounded(tiny_mpt: MakeMPT, book: list[int]) -> None:
    _, engine, captures = engines(tiny_mpt())
    assert engine._stepper.decoder is not None
    engine._stepper.decoder.most_captures = 1
    write(engine, engine.open_book(book), PAGE_TOKENS)
    assert len(captures.tapes) == 2
    assert len(engine._stepper.decoder._slots) == 1


def test_what_cannot_be_captured_runs_as_it_is(tiny_mpt: MakeMPT, book: list[int]) -> None:
    def refuse(step: Any) -> Any:
        raise RuntimeError("no graphs here")

    plain, engine, _ = engines(tiny_mpt())
    assert engine._stepper.decoder is not None
    engine._stepper.decoder.capture = refuse
    with pytest.warns(UserWarning, match="no graphs here"):
        written = write(engine, engine.open_book(book), 20)
    assert written == write(plain, plain.open_book(book), 20)


def test_a_forgotten_text_gives_its_pages_back(tiny_mpt: MakeMPT, book: list[int]) -> None:
    """A slot holds a copy, never the table."""
    _, engine, _ = engines(tiny_mpt())
    write(engine, engine.open_book(book), 5)
    assert engine.pages.num_held == 0


@pytest.mark.parametrize("is_outside_later", [False, True])
def test_whoever_calls_in_inference_mode_gets_captured_steps(
    tiny_mpt: MakeMPT, book: list[int], is_outside_later: bool
) -> None:
    plain, engine, captures = engines(tiny_mpt())
    text = plain.open_book(book)
    wanted = write(plain, text, 140)
    with torch.inference_mode():
        text = engine.open_book(book)
        first = write(engine, text, 70)
    with torch.inference_mode(not is_outside_later):
        assert first + write(engine, text, 70) == wanted
    assert captures.num_replays > 100


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE])
def test_a_step_reads_no_number(tiny_mpt: MakeMPT, architecture: str, storage: Storage) -> None:
    """Tensors without memory have none."""
    model = tiny_mpt(**{"d_model": 48} | (ARCHITECTURES | MORE)[architecture]).eval()
    bounds = eviction_bounds(model, storage)
    on_meta = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in vars(bounds).items()}
    tables = TokenTables.empty(model.config, batch=3, num_pages=5, device=torch.device("meta"))
    pool = PagePool(model.config, num_pages=9, storage=storage, device="meta")
    with torch.inference_mode():
        results = run_tokens(model.to("meta"), pool, tables, EvictionBounds(**on_meta), epsilon=1e-6)
    assert results.logits_BV.shape == (3, 61)
    assert results.scores_LBH is not None
    assert results.scores_LBH.shape == (2, 3, model.config.n_heads)
    assert results.visited_BH.shape == results.mass_BH.shape == (3, model.config.n_heads)
