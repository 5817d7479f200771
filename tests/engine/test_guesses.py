"""Guesses of the next token are the sampler's own, and whatever they are, they change no token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.conftest import MakeMPT
from engine.invariants import check
from engine.tape import FORBIDDEN, Captures
from engine.test_interrupts import interrupted
from epilogue.engine import Engine, SamplingParams, filters
from epilogue.engine import Sequence as Text
from epilogue.engine.decoder import Decoder
from epilogue.engine.sampling import Sampler

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"temperature": 0},
    "greedy without penalty": {"temperature": 0, "repetition_penalty": 1.0},
    "cold": {"temperature": 0.2},
    "top k": {"top_k": 7, "top_p": 1.0, "min_p": 0.0},
    "top k and p": {"top_k": 40, "top_p": 0.8, "min_p": 0.0},
    "top p": {"top_p": 0.5, "min_p": 0.0},
    "min p": {"top_p": 1.0, "min_p": 0.2},
    "no filters": {"top_p": 1.0, "min_p": 0.0, "temperature": 1.3},
    "short memory": {"repetition_range_tokens": 5, "repetition_penalty": 1.5},
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "dry": {"dry_multiplier": 0.8},
    "xtc": {"xtc_probability": 0.5},
    "mirostat": {"mirostat": 2},
    "bias": {"logit_bias": {3: 1.0}},
    "no end": {"ignore_eos": True},
    "other order": {"order": ("temperature", "repetition")},
    "typical": {"typical": 0.9},
}


class NoWaiting(TorchDispatchMode):
    """What would wait for a GPU fails."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in FORBIDDEN
        return func(*args, **(kwargs or {}))


def logits_of(seed: int, spread: float, dtype: torch.dtype) -> Tensor:
    return (torch.randn(3000, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("spread", [0.3, 1.3, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_guess_is_what_the_sampler_says(settings: str, spread: float, dtype: torch.dtype) -> None:
    sampler = Sampler(SamplingParams(**SETTINGS[settings], seed=7), num_tokens=2900)
    history = torch.randint(0, 3000, (800,), generator=torch.Generator().manual_seed(2)).tolist()
    for seed in range(20):
        logits_V = logits_of(seed, spread, dtype)
        with NoWaiting():
            token_1 = sampler.guess(logits_V, history[: 700 + seed])
        assert token_1 is not None
        assert token_1.tolist() == [sampler.sample(logits_V, history[: 700 + seed])]


@pytest.mark.parametrize("settings", UNKNOWN)
def test_nothing_is_guessed_where_settings_ask_for_more(settings: str) -> None:
    sampler = Sampler(SamplingParams(**UNKNOWN[settings]), eos_id=2)
    assert sampler.guess(logits_of(0, 1.0, torch.float32), [1, 2, 3]) is None


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.95, 0.9999])
@pytest.mark.parametrize("min_p", [1e-6, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.3, 6.0])
def test_two_filters_at_once_are_one_behind_the_other(top_p: float, min_p: float, spread: float) -> None:
    for dtype in (torch.float64, torch.bfloat16):  # in bf16 many are equal
        scores_V = logits_of(3, spread, dtype).double()
        scores_V[::7] = -torch.inf
        ours_V = filters.keep_top_p_then_min_p(scores_V, top_p=top_p, min_p=min_p)
        assert ours_V.equal(filters.keep_min_p(filters.keep_top_p(scores_V, top_p=top_p), min_p=min_p))


def engine_of(model: Any, **options: Any) -> tuple[Engine, Captures]:
    """Its steps are replayed, as on a GPU."""
    engine = Engine(model, num_pages=600, epsilon=1e-3, chunk_tokens=100, undo_tokens=0, lookup=False, **options)
    captures = Captures()
    engine._stepper.decoder = Decoder(
        model, engine.pages.pool, engine.bounds, epsilon=1e-3, capture=captures, backend="reference"
    )
    return engine, captures


@pytest.fixture(autouse=True)
def pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in ("few_row_linear", "reach_decode"):
        monkeypatch.setattr(f"epilogue.kernels.{op}.op.native_is_available", lambda: False)


def told(engine: Engine, text: Text, params: SamplingParams) -> list[Any]:
    """What is written, what was looked at, and what bounds the pages then."""
    written = list(engine.stream(text, params))
    check(engine)
    table = text.table
    return [
        written,
        text.reads.visited_H.tolist(),
        text.reads.omitted_mass,
        table.norms_LKP.tolist(),
        table.scores_LHP.tolist(),
    ]


def wrong(sampler: Sampler, logits_V: Tensor, history: list[int]) -> Tensor:
    """Now and then right."""
    return torch.tensor([(sampler.sample(logits_V, history) + (len(history) % 3 > 0)) % len(logits_V)])


@pytest.mark.parametrize(
    ("guess", "temperature", "storage"),
    [
        (lambda *_: None, 0.8, "int8"),
        (wrong, 0.0, "float32"),
        (wrong, 0.8, "int8"),
        (None, 0.0, "float32"),
        (None, 0.8, "float32"),
        (None, 0.8, "int8"),
    ],
)
def test_guesses_change_nothing(
    tiny_mpt: MakeMPT,
    book: list[int],
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    storage: Any,
    guess: Callable[..., Tensor | None] | None,
) -> None:
    model = tiny_mpt(n_heads=2, attn_config={"alibi_bias_max": 4, "clip_qkv": 1.0})
    params = SamplingParams(max_new_tokens=40, seed=3, temperature=temperature)
    plain = Engine(model, storage=storage, num_pages=600, epsilon=1e-3, chunk_tokens=100, undo_tokens=0, lookup=False)
    plain._stepper.decoder = Decoder(
        model, plain.pages.pool, plain.bounds, epsilon=1e-3, capture=lambda step: step, backend="reference"
    )
    with monkeypatch.context() as context:
        context.setattr(Sampler, "guess", lambda *_: None)
        wanted = told(plain, plain.open_book(book * 4), params)
    engine, captures = engine_of(model, storage=storage)
    if guess is not None:
        monkeypatch.setattr(Sampler, "guess", guess)
    assert told(engine, engine.open_book(book * 4), params) == wanted
    if guess is wrong:
        assert captures.num_replays > 55
    else:
        assert captures.num_replays == 39, "a pass for every token, and none in vain"


def test_a_confirmed_pass_is_the_only_one(tiny_mpt: MakeMPT, book: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a page every token's pass was started before the token was chosen."""
    engine, _ = engine_of(tiny_mpt())
    steps: list[int] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, segments, ids: (steps.append(1), step(self, segments, ids))[1])
    list(engine.stream(engine.open_book(book), SamplingParams(max_new_tokens=40, seed=1)))
    assert len(steps) <= 3


@pytest.mark.parametrize("act", ["fork", "cut", "close", "append", "other", "read"])
def test_what_happens_between_a_guess_and_its_token_changes_nothing(
    tiny_mpt: MakeMPT, book: list[int], act: str
) -> None:
    """A pass is under way for a token that never comes, or comes to another text."""
    params = SamplingParams(max_new_tokens=20, seed=5)

    def story(engine: Engine, is_guessing: bool) -> list[Any]:
        text = engine.open_book(book * 2)
        stream = engine.stream(text, params)
        written = [next(stream) for _ in range(5)]
        if is_guessing:  # whatever the next token is, its pass is under way
            engine._stepper.run_ahead(text, Sampler(params).guess)
        others: list[Text] = []
        if act == "fork":
            others.append(engine.fork(text))
        elif act == "cut":
            engine.truncate(text, 65)
        elif act == "append":
            engine.append(text, [5, 6])
        elif act == "other":
            others.append(engine.open_book(book[::-1]))
            written += list(engine.stream(others[0], params))
        elif act == "read":
            others.append(engine.open_book(book * 5))
        elif act == "close":
            stream.close()
            stream = engine.stream(text, params)
        written += list(stream)
        for other in others:
            written += list(engine.stream(other, params))
        check(engine)
        return written

    model = tiny_mpt(n_heads=8, attn_config={"clip_qkv": 1.0})
    engine, _ = engine_of(model)
    plain = Engine(model, num_pages=600, epsilon=1e-3, chunk_tokens=100, undo_tokens=0, lookup=False)
    assert story(engine, True) == story(plain, False)


def test_an_interruption_on_any_line_changes_nothing(tiny_mpt: MakeMPT, book: list[int]) -> None:
    """With a pass under way, at the end of a page."""
    model = tiny_mpt(n_heads=1, n_layers=1, attn_config={"alibi_bias_max": 2}).double()

    def opened() -> tuple[Engine, Text]:
        engine, _ = engine_of(model)
        text = engine.open_book((book * 5)[:124])
        return engine, text

    def write_on(engine: Engine, text: Text) -> None:
        list(engine.stream(text, SamplingParams(seed=1, max_new_tokens=132 - text.num_tokens)))

    engine, text = opened()
    total = interrupted(lambda: write_on(engine, text), None)
    wanted = list(text.ids)
    for line in range(1, total, total // 12):
        engine, text = opened()
        interrupted(lambda engine=engine, text=text: write_on(engine, text), line)  # type: ignore[misc]
        write_on(engine, text)
        check(engine)
        assert text.ids == wanted, line
