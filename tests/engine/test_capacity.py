"""What does not fit is refused before it costs anything, and the number in the message is true."""

import re
import sys
from itertools import pairwise

import psutil
import pytest
import torch

from epilogue.engine import Engine, available_bytes
from epilogue.engine.capacity import bytes_needed
from epilogue.errors import CapacityError
from epilogue.model import MPT, KVCache


def counted(model: MPT) -> list[int]:
    """A list that grows by the number of tokens of each forward pass."""
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    return passes


def refusal(engine: Engine, num_tokens: int, *, room_tokens: int) -> str:
    with pytest.raises(CapacityError) as caught:
        engine.read([1] * num_tokens, room_tokens=room_tokens)
    return str(caught.value)


def fit_in(message: str) -> int:
    return int(re.search(r"([\d,]+) tokens would fit", message)[1].replace(",", ""))


@pytest.mark.parametrize("available", [300_000, 1_000_000, 2_345_678])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 512])
@pytest.mark.parametrize("room_tokens", [0, 13])
def test_the_number_that_fits_does_fit(tiny_mpt, available: int, chunk_tokens: int, room_tokens: int) -> None:
    model = tiny_mpt()
    engine = Engine(model, chunk_tokens=chunk_tokens, available_bytes=lambda _: available)
    passes = counted(model)
    fit = fit_in(refusal(engine, 10**5, room_tokens=room_tokens))
    assert fit == engine.tokens_that_fit() > 20
    refusal(engine, fit + 1 - room_tokens, room_tokens=room_tokens)
    assert passes == []
    sequence = engine.read([1] * (fit - room_tokens), room_tokens=room_tokens)
    assert sequence.capacity_tokens == fit
    assert sum(passes) == fit - room_tokens


def test_the_message_is_one_sentence_with_every_number(tiny_mpt) -> None:
    engine = Engine(tiny_mpt(), available_bytes=lambda _: 3 * 2**20)
    assert re.fullmatch(
        r"1,000,100 tokens \(the text and the room to write\) need [\d.,]+ MiB of memory and 3\.00 MiB are available;"
        r" [\d,]+ tokens would fit, so give a shorter text or less room",
        refusal(engine, 10**6, room_tokens=100),
    )


def test_nothing_fits_in_nothing(tiny_mpt) -> None:
    assert fit_in(refusal(Engine(tiny_mpt(), available_bytes=lambda _: 0), 1, room_tokens=0)) == 0


def test_nothing_is_allocated_before_the_refusal(tiny_mpt, monkeypatch) -> None:
    monkeypatch.setattr(KVCache, "__init__", lambda *_, **__: pytest.fail("a cache was made"))
    refusal(Engine(tiny_mpt(), available_bytes=lambda _: 10**5), 10**4, room_tokens=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_cover_the_cache_and_grow_with_every_token(tiny_mpt, dtype: torch.dtype) -> None:
    model = tiny_mpt().to(dtype)
    needs = [bytes_needed(model, n, chunk_tokens=7) for n in range(1, 300)]
    assert all(shorter < longer for shorter, longer in pairwise(needs))
    assert needs[-1] > KVCache(model.config, capacity_tokens=299, dtype=dtype).num_bytes


def test_alibi_reads_past_the_trained_length(tiny_mpt) -> None:
    engine = Engine(tiny_mpt(max_seq_len=16))
    assert [engine.exceeds_trained_length(n) for n in (1, 16, 17)] == [False, False, True]
    assert engine.read([1] * 40, room_tokens=10).num_tokens == 40


def test_learned_positions_are_a_capacity(tiny_mpt) -> None:
    model = tiny_mpt(max_seq_len=16, attn_config={"alibi": False})
    passes = counted(model)
    engine = Engine(model)
    message = refusal(engine, 14, room_tokens=3)
    assert message.startswith("17 tokens (the text and the room to write) are more than the 16 positions")
    assert passes == []
    assert fit_in(message) == engine.tokens_that_fit() == 16
    assert engine.read([1] * 14, room_tokens=2).capacity_tokens == 16


def test_available_bytes_are_the_devices_own(monkeypatch) -> None:
    assert 0 < available_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
    assert available_bytes(torch.device("meta")) == sys.maxsize
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert available_bytes(torch.device("cuda", 0)) == 1200
