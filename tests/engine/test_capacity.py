"""What does not fit is refused before it costs anything, and the number in the message is true."""

import re
import sys

import psutil
import pytest
import torch

from epilogue.engine import Engine, available_bytes
from epilogue.engine.capacity import chunk_tokens_for, pages_that_fit
from epilogue.errors import CapacityError
from epilogue.model import MPT, page_bytes


def counted(model: MPT) -> list[int]:
    """A list that grows by the number of tokens of each forward pass."""
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    return passes


def refusal(engine: Engine, num_tokens: int, *, room_tokens: int = 0) -> str:
    with pytest.raises(CapacityError) as caught:
        engine.open_book([1] * num_tokens, room_tokens=room_tokens)
    return str(caught.value)


def fit_in(message: str) -> int:
    return int(re.search(r"([\d,]+) tokens would fit", message)[1].replace(",", ""))


def test_chunks_are_longer_where_they_take_little_of_a_gpu(tiny_mpt) -> None:
    model = tiny_mpt()
    assert chunk_tokens_for(model, available=2**40) == 1024
    model.to("meta")  # stands for any device that is no CPU
    assert [chunk_tokens_for(model, available=n) for n in (2**20, 2**40)] == [8192, 12288]


@pytest.mark.parametrize("num_pages", [12, 35, 61])
@pytest.mark.parametrize("chunk_tokens", [7, 512])
@pytest.mark.parametrize("epsilon", [0, 1e-6, 1e-2])
def test_the_number_that_fits_does_fit(tiny_mpt, num_pages: int, chunk_tokens: int, epsilon: float) -> None:
    model = tiny_mpt(attn_config={"alibi_bias_max": 7})
    engine = Engine(model, chunk_tokens=chunk_tokens, num_pages=num_pages, epsilon=epsilon, undo_tokens=0)
    passes = counted(model)
    room_tokens = 13
    fit = fit_in(refusal(engine, 10**5, room_tokens=room_tokens))
    assert fit >= 256
    refusal(engine, fit + 1 - room_tokens, room_tokens=room_tokens)
    assert passes == []
    assert engine.pages.num_held == 0
    engine.open_book([1] * (fit - room_tokens), room_tokens=room_tokens)
    assert sum(passes) == fit - room_tokens


def test_with_eviction_a_text_of_any_length_fits(tiny_mpt) -> None:
    model = tiny_mpt(n_heads=1, n_layers=1, attn_config={"alibi_bias_max": 1})  # a slope of one half
    engine = Engine(model, num_pages=12, chunk_tokens=128, undo_tokens=256, spacings=())
    text = engine.open_book([1, 2] * 1500, room_tokens=10**6)
    assert engine.pages.num_held <= 5
    engine.append(text, [3] * 100)
    with_bookmarks = Engine(model, num_pages=28, chunk_tokens=128, undo_tokens=256)
    text = with_bookmarks.open_book([1, 2] * 1500, room_tokens=10**6 - 3000)
    assert 5 < with_bookmarks.pages.num_held <= 5 + 2 * 3
    refusal(Engine(model, num_pages=27, chunk_tokens=128, undo_tokens=256), 10**6)
    refusal(Engine(model, num_pages=12, chunk_tokens=128, epsilon=0), 3000)
    refusal(Engine(model, num_pages=12, chunk_tokens=128, spacings=()), 3000)  # eviction lags by 1,024 tokens
    refusal(
        Engine(model, num_pages=12, chunk_tokens=4096, undo_tokens=0, spacings=()), 3000
    )  # all before anything can go


def test_an_appendix_that_cannot_fit_is_refused_before_it_is_read(tiny_mpt) -> None:
    model = tiny_mpt()
    engine = Engine(model, num_pages=18, epsilon=0)
    text = engine.open_book([1] * 200)
    passes = counted(model)
    with pytest.raises(CapacityError, match=r"385 tokens .* can need 12 pages .* memory for 6; 384 tokens would fit"):
        engine.append(text, [2] * 185)
    with pytest.raises(CapacityError, match="256 tokens would fit"):  # the last page is copied
        engine.score([2] * 185, after=text)
    assert (text.num_tokens, text.num_pending, passes) == (200, 0, [])
    engine.append(text, [2] * 184)


def test_pages_that_are_shared_are_not_counted_twice(tiny_mpt) -> None:
    engine = Engine(tiny_mpt(), num_pages=30, epsilon=0)
    book = torch.randint(0, 61, (400,)).tolist()
    text = engine.open_book(book)  # 24 pages
    twin = engine.open_book(book, room_tokens=112)  # 6 more
    assert engine.pages.num_held == 30
    engine.append(twin, [5] * 112)
    with pytest.raises(CapacityError, match="there is memory for 0; 512 tokens would fit"):
        engine.append(twin, [5])
    with pytest.raises(CapacityError, match="can need 6 pages"):
        engine.append(engine.fork(text), [5])  # a copy of the last page


def test_the_message_is_one_sentence_with_every_number(tiny_mpt) -> None:
    engine = Engine(tiny_mpt(), num_pages=18, epsilon=0)
    assert re.fullmatch(
        r"1,000,100 tokens \(the text and the room to write\) can need [\d,]+ pages of keys and values and there is"
        r" memory for 18; 384 tokens would fit, so give a shorter text or less room",
        refusal(engine, 10**6, room_tokens=100),
    )


def test_nothing_fits_in_nothing(tiny_mpt) -> None:
    assert fit_in(refusal(Engine(tiny_mpt(), available_bytes=lambda _: 0), 1)) == 0


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_pages_fit_and_more_memory_is_more_pages(tiny_mpt, dtype: torch.dtype, storage) -> None:
    model = tiny_mpt().to(dtype)
    needed = [pages_that_fit(model, storage, chunk_tokens=7, available=n * 10**6) for n in (1, 2, 5)]
    assert 0 < needed[0] < needed[1] < needed[2]
    assert needed[2] * page_bytes(model.config, storage) < 5 * 10**6
    assert pages_that_fit(model, storage, chunk_tokens=512, available=10**6) < needed[0]


def test_alibi_reads_past_the_trained_length(tiny_mpt) -> None:
    engine = Engine(tiny_mpt(max_seq_len=16), num_pages=6)
    assert [engine.exceeds_trained_length(n) for n in (1, 16, 17)] == [False, False, True]
    assert engine.open_book([1] * 40, room_tokens=10).num_tokens == 40


@pytest.mark.parametrize(("max_seq_len", "fit"), [(16, 16), (200, 128)])
def test_learned_positions_are_a_capacity(tiny_mpt, max_seq_len: int, fit: int) -> None:
    """Beside memory: of the two the smaller number is told."""
    model = tiny_mpt(max_seq_len=max_seq_len, attn_config={"alibi": False})
    passes = counted(model)
    engine = Engine(model, num_pages=6)
    message = refusal(engine, max_seq_len - 2, room_tokens=3)
    assert message.startswith(f"{max_seq_len + 1} tokens (the text and the room to write) are more than the")
    assert passes == []
    assert fit_in(message) == fit
    assert engine.open_book([1] * (fit - 2), room_tokens=2).num_tokens == fit - 2


def test_available_bytes_are_the_devices_own(monkeypatch) -> None:
    assert 0 < available_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
    assert available_bytes(torch.device("meta")) == sys.maxsize
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert available_bytes(torch.device("cuda", 0)) == 1200
