"""The engine against its oracle, itself in other chunks, and fp64; and what stays true when it is interrupted."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from epilogue.engine import Engine, SamplingParams, Sequence
from epilogue.engine.reference import generate
from epilogue.errors import CapacityError, EpilogueError
from epilogue.kernels.model_step import StepModel
from epilogue.model import MPT
from kernels.native_cases import needs_extension

# A tiny model left alone says one token for ever, by which no mistake would show.
GREEDY = SamplingParams(temperature=0, repetition_penalty=3, repetition_range_tokens=8, max_new_tokens=20)
SAMPLED = SamplingParams(temperature=2.0, seed=11, max_new_tokens=20)
WHOLE = 10**6


def engine_on(model: MPT, **settings) -> Engine:
    """An engine with a pool that need not be sought."""
    return Engine(model, **{"num_pages": 500} | settings)


def written(model: MPT, book: list[int], params: SamplingParams, *, chunk_tokens: int = 7, **end) -> list[int]:
    engine = engine_on(model, chunk_tokens=chunk_tokens)
    return list(engine.stream(engine.open_book(book, room_tokens=params.max_new_tokens), params, **end))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 512, WHOLE])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_same_tokens_as_the_reference(any_mpt: MPT, book, params, chunk_tokens: int) -> None:
    expected = generate(any_mpt, book, params)
    assert len(set(expected)) > 3, "a text of one token would prove little"
    assert written(any_mpt, book, params, chunk_tokens=chunk_tokens) == expected


def worst_error(logits_TV: Tensor, exact_TV: Tensor) -> float:
    return (logits_TV.double() - exact_TV).abs().max().item()


@torch.inference_mode()
def test_logits_are_as_good_by_token_by_chunk_and_whole(any_mpt: MPT, book) -> None:
    ids_BT = torch.tensor([book])
    exact = copy.deepcopy(any_mpt).double()
    for model in (exact, any_mpt):
        model.set_attention_backend("reference")
    exact_TV = exact(ids_BT)[0]
    allowed = 2 * worst_error(any_mpt(ids_BT)[0], exact_TV)
    any_mpt.set_attention_backend(None)

    assert worst_error(any_mpt(ids_BT)[0], exact_TV) <= allowed
    assert worst_error(logits_by_token(any_mpt, book), exact_TV) <= allowed
    for chunk_tokens in (1, 7, 29, WHOLE):
        logits_V = engine_on(any_mpt, chunk_tokens=chunk_tokens).open_book(book, room_tokens=0).logits_V
        assert worst_error(logits_V, exact_TV[-1]) <= allowed


def logits_by_token(model: MPT, book: list[int]) -> Tensor:
    engine = engine_on(model)
    sequence = engine.open_book(book[:1], room_tokens=len(book) - 1)
    rows = [sequence.logits_V]
    for token_id in book[1:]:
        engine.append(sequence, [token_id])
        rows.append(sequence.logits_V)
    return torch.stack(rows)


@pytest.mark.parametrize("stop_after", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_interrupted_and_resumed_is_uninterrupted(tiny_mpt, book, params, stop_after: int) -> None:
    engine = engine_on(tiny_mpt(), chunk_tokens=7)
    whole = engine.open_book(book, room_tokens=20)
    expected = list(engine.stream(whole, params))

    sequence = engine.open_book(book, room_tokens=20)
    writing = engine.stream(sequence, params)
    begun = [next(writing) for _ in range(stop_after)]
    writing.close()
    assert sequence.ids == book + begun
    rest = replace(params, max_new_tokens=20 - stop_after)
    assert begun + list(engine.stream(sequence, rest)) == expected
    assert sequence.ids == whole.ids


def test_many_short_writes_are_one_long_one(tiny_mpt, book) -> None:
    model = tiny_mpt()
    engine = engine_on(model)
    sequence = engine.open_book(book, room_tokens=20)
    pieces = [list(engine.stream(sequence, replace(SAMPLED, max_new_tokens=n))) for n in (1, 12, 7)]
    assert [len(piece) for piece in pieces] == [1, 12, 7]
    assert [token_id for piece in pieces for token_id in piece] == generate(model, book, SAMPLED)


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("place", ["transformer.blocks.1", "transformer.norm_f", "head"])
def test_ctrl_c_inside_the_model_loses_nothing(tiny_mpt, book, monkeypatch, place: str) -> None:
    model = tiny_mpt().double()  # which runs module by module
    owner = model if place == "head" else model.get_submodule(place)
    interrupt_inside(model, book, monkeypatch, owner, "head" if place == "head" else "forward")


@needs_extension
def test_ctrl_c_inside_the_extension_loses_nothing(tiny_mpt, book, monkeypatch) -> None:
    interrupt_inside(tiny_mpt(), book, monkeypatch, StepModel, "run")


def interrupt_inside(model: MPT, book: list[int], monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    expected = generate(model, book, SAMPLED)
    engine = engine_on(model)
    sequence = engine.open_book(book, room_tokens=20)
    writing = engine.stream(sequence, SAMPLED)
    begun = [next(writing) for _ in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(Interrupt):
            next(writing)
    assert sequence.ids == book + begun
    assert begun + list(engine.stream(sequence, replace(SAMPLED, max_new_tokens=15))) == expected


def interrupt(*args: object, **kwargs: object) -> None:
    raise Interrupt


def test_an_interrupted_extension_is_read_when_next_used(tiny_mpt, book) -> None:
    model = tiny_mpt()
    engine = engine_on(model, chunk_tokens=4)
    sequence = engine.open_book(book[:10], room_tokens=40)
    with pytest.raises(Interrupt):
        engine.append(sequence, book[10:], on_progress=interrupt)
    assert sequence.ids == book
    assert sequence.num_pending == 16
    assert list(engine.stream(sequence, GREEDY)) == generate(model, book, GREEDY)


def test_reading_on_after_writing(tiny_mpt, book) -> None:
    model = tiny_mpt()
    engine = engine_on(model, chunk_tokens=4)
    sequence = engine.open_book(book, room_tokens=40)
    story = list(engine.stream(sequence, replace(GREEDY, max_new_tokens=5)))
    engine.append(sequence, [1, 2, 3])
    engine.append(sequence, [])
    assert sequence.ids == [*book, *story, 1, 2, 3]
    assert list(engine.stream(sequence, GREEDY)) == generate(model, sequence.ids[:38], GREEDY)


def test_sequences_do_not_touch_one_another(tiny_mpt, book) -> None:
    model = tiny_mpt()
    engine = engine_on(model)
    texts = [book, book[::-1]]
    writings = [engine.stream(engine.open_book(text, room_tokens=20), SAMPLED) for text in texts]
    pairs = list(zip(*writings, strict=True))
    assert [list(column) for column in zip(*pairs, strict=True)] == [generate(model, x, SAMPLED) for x in texts]


def test_seeds(tiny_mpt, book) -> None:
    model = tiny_mpt()
    engine = engine_on(model)
    sequence = engine.open_book(book, room_tokens=20)
    story = list(engine.stream(sequence, replace(SAMPLED, seed=None)))
    drawn_seed = sequence.seed
    assert story == written(model, book, replace(SAMPLED, seed=drawn_seed))
    assert written(model, book, SAMPLED) != written(model, book, replace(SAMPLED, seed=12))


def test_another_seed_starts_its_own_random_numbers(tiny_mpt, book) -> None:
    model = tiny_mpt()
    engine = engine_on(model)
    sequence = engine.open_book(book, room_tokens=30)
    list(engine.stream(sequence, replace(SAMPLED, max_new_tokens=10)))
    text = list(sequence.ids)
    params = replace(SAMPLED, seed=5)
    assert list(engine.stream(sequence, params)) == generate(model, text, params)


def test_end_of_text_is_neither_yielded_nor_kept(tiny_mpt, book) -> None:
    model = tiny_mpt()
    story = generate(model, book, SAMPLED)
    eos_id = story[9]
    expected = story[: story.index(eos_id)]
    engine = engine_on(model)
    sequence = engine.open_book(book, room_tokens=20)
    assert list(engine.stream(sequence, SAMPLED, eos_id=eos_id)) == expected
    assert sequence.ids == book + expected


def test_end_of_text_can_be_ignored(tiny_mpt, book) -> None:
    model = tiny_mpt()
    params = replace(SAMPLED, ignore_eos=True)
    eos_id = generate(model, book, SAMPLED)[0]
    story = written(model, book, params, eos_id=eos_id)
    assert len(story) == 20
    assert eos_id not in story
    assert story == generate(model, book, params, eos_id=eos_id)


def test_padding_rows_are_never_written(tiny_mpt, book) -> None:
    model = tiny_mpt()
    hot = SamplingParams(temperature=50.0, top_p=1, min_p=0, seed=1, max_new_tokens=60)
    assert max(written(model, book, hot)) >= 50
    story = written(model, book, hot, num_tokens=50)
    assert max(story) < 50
    assert story == generate(model, book, hot, num_tokens=50)


def test_writing_ends_where_learned_positions_do(tiny_mpt, book) -> None:
    engine = engine_on(tiny_mpt(max_seq_len=33, attn_config={"alibi": False}))
    sequence = engine.open_book(book, room_tokens=3)
    with pytest.raises(CapacityError, match=r"34 tokens .* are more than the 33 positions"):
        engine.append(sequence, [1, 2, 3, 4])
    assert sequence.ids == book
    writing = engine.stream(sequence, GREEDY)
    next(writing)
    engine.append(sequence, [1])  # in the middle of writing
    assert len(list(writing)) == 1
    assert list(engine.stream(sequence, GREEDY)) == []
    assert sequence.num_tokens == 33
    engine.append(sequence, [])
    with pytest.raises(CapacityError, match="33 tokens would fit"):
        engine.append(sequence, [1])


def test_writing_ends_where_the_pages_do_and_goes_on_when_there_are_more(tiny_mpt, book) -> None:
    model = tiny_mpt()
    expected = generate(model, book, replace(SAMPLED, max_new_tokens=110))
    engine = engine_on(model, num_pages=12)  # two layers, three heads: two texts of a page
    sequence, other = engine.open_book(book), engine.open_book(book[::-1])
    writing = engine.stream(sequence, replace(SAMPLED, max_new_tokens=110))
    with pytest.raises(CapacityError, match=r"6 more pages .* are needed and 0 of 12 are free"):
        list(writing)
    begun = sequence.ids[len(book) :]
    assert len(begun) == 99  # the last of them waits for a page
    engine.close(other)
    assert begun + list(engine.stream(sequence, replace(SAMPLED, max_new_tokens=11))) == expected


def test_nan_weights_are_an_error_not_a_token(tiny_mpt, book) -> None:
    model = tiny_mpt()
    with torch.no_grad():
        model.transformer.norm_f.weight[0] = torch.nan
    engine = engine_on(model)
    sequence = engine.open_book(book, room_tokens=3)
    with pytest.raises(EpilogueError, match="61 of 61 logits after 30 tokens are not finite"):
        next(engine.stream(sequence, SAMPLED))
    assert sequence.ids == book


@pytest.mark.parametrize("name", ["norm_1.weight", "attn.Wqkv.weight"])
def test_weights_that_are_no_numbers_do_not_stop_an_engine_from_saying_so(tiny_mpt, book, name: str) -> None:
    model = tiny_mpt()
    model.get_parameter(f"transformer.blocks.1.{name}").data.view(-1)[0] = math.inf
    engine = engine_on(model)
    with pytest.raises(EpilogueError, match="not finite"):
        next(engine.stream(engine.open_book(book * 10), SAMPLED))


def test_progress_counts_up_to_the_whole(tiny_mpt, book) -> None:
    engine = engine_on(tiny_mpt(), chunk_tokens=12)
    seen: list[tuple[int, int]] = []
    sequence = engine.open_book(book, room_tokens=9, on_progress=lambda *x: seen.append(x))
    engine.append(sequence, [1, 2], on_progress=lambda *x: seen.append(x))
    assert seen == [(12, 30), (24, 30), (30, 30), (2, 2)]


def test_reading_asks_the_last_layer_about_the_last_token_alone(tiny_mpt, book) -> None:
    """Scoring about all; and no more layers than the last do less."""
    model, long_book = tiny_mpt(), book * 3
    engine, before = engine_on(model, chunk_tokens=35), engine_on(model, chunk_tokens=35).score(long_book)
    rows: list[tuple[int, int]] = []
    for layer, block in enumerate(model.transformer.blocks):
        block.ffn.register_forward_pre_hook(lambda _, args, layer=layer: rows.append((layer, args[0].shape[1])))
    last = model.config.n_layers - 1
    engine.open_book(long_book)
    assert [n for layer, n in rows if layer == last] == [1]
    assert sum(n for layer, n in rows if layer == 0) == len(long_book) > 2 * 35
    rows.clear()
    torch.testing.assert_close(engine.score(long_book), before)
    assert sum(n for layer, n in rows if layer == last) >= len(long_book) - 1


def test_only_the_last_chunk_meets_the_head(tiny_mpt, book, monkeypatch) -> None:
    model = tiny_mpt().double()  # which runs module by module
    shapes: list[tuple[int, ...]] = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda x_BTC: (shapes.append(tuple(x_BTC.shape)), head(x_BTC))[1])
    engine_on(model, chunk_tokens=7).open_book(book, room_tokens=0)
    assert shapes == [(1, 24)]


def test_every_token_goes_through_the_model_once_and_no_earlier_than_needed(tiny_mpt, book) -> None:
    model = tiny_mpt()
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    engine = engine_on(model, chunk_tokens=12)
    sequence = engine.open_book(book, room_tokens=4)
    for num_written, _ in enumerate(engine.stream(sequence, GREEDY), start=1):
        assert passes == [12, 12, 6] + [1] * (num_written - 1)
        assert sequence.num_pending == 1
        assert sequence.logits_V is None


def test_inference_mode_holds_inside_and_does_not_leak(tiny_mpt, book) -> None:
    model = tiny_mpt()
    inside: list[bool] = []
    model.transformer.register_forward_hook(lambda *_: inside.append(torch.is_inference_mode_enabled()))
    engine = engine_on(model)
    for _ in engine.stream(engine.open_book(book, room_tokens=2), GREEDY):
        assert not torch.is_inference_mode_enabled()
    assert inside
    assert all(inside)


def test_dropout_is_off(tiny_mpt, book) -> None:
    model = tiny_mpt(resid_pdrop=0.5, emb_pdrop=0.5).train()
    assert written(model, book, GREEDY) == written(model, book, GREEDY)


@pytest.mark.parametrize("ids", [[61], [-1], [0, 61, 1]])
def test_ids_outside_the_vocabulary(tiny_mpt, ids: list[int]) -> None:
    engine = engine_on(tiny_mpt())
    with pytest.raises(ValueError, match="outside the vocabulary of 61"):
        engine.open_book(ids, room_tokens=1)
    sequence = engine.open_book([1], room_tokens=5)
    with pytest.raises(ValueError, match="outside the vocabulary of 61"):
        engine.append(sequence, ids)
    assert sequence.ids == [1]


def test_wrong_calls(tiny_mpt) -> None:
    engine = engine_on(tiny_mpt())
    with pytest.raises(ValueError, match="no tokens to read"):
        engine.open_book([], room_tokens=1)
    with pytest.raises(ValueError, match="room_tokens must be at least 0, got -1"):
        engine.open_book([1], room_tokens=-1)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        Engine(tiny_mpt(), chunk_tokens=0)
    for epsilon in (-1e-9, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\), got"):
            Engine(tiny_mpt(), epsilon=epsilon)
    with pytest.raises(ValueError, match="num_tokens must be at least 1"):
        engine.stream(engine.open_book([1], room_tokens=1), GREEDY, num_tokens=0)


def test_a_new_sequence_is_whole(tiny_mpt, book) -> None:
    sequence = engine_on(tiny_mpt()).open_book(iter(book), room_tokens=0)
    assert isinstance(sequence, Sequence)
    assert (sequence.num_pending, sequence.table.num_tokens, sequence.logits_V.shape) == (0, 30, (61,))
