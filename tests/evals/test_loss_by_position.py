"""Losses are log-softmax's, positions are counted right, and bytes are those of the predicted text."""

import math
from importlib import import_module

import pytest
import torch

from epilogue.errors import BookError, RequestError
from epilogue.evals import LossByPosition, loss_by_position, token_losses
from epilogue.model import MPT, AttentionConfig, MPTConfig
from epilogue.text import Tokenizer, train_tokenizer

# The package gives this name to the function in it.
MODULE = import_module("epilogue.evals.loss_by_position")
TEXT = "Der Fluß ging über die Wiesen, and nobody knew — not even the miller — where it went. " * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], vocab_size=300)


def make_model(tokenizer: Tokenizer, *, alibi: bool = True) -> MPT:
    attention = AttentionConfig(alibi=alibi)
    config = MPTConfig(
        d_model=16, n_heads=2, n_layers=1, vocab_size=tokenizer.vocab_size, max_seq_len=64, attn_config=attention
    )
    model = MPT(config)
    model.init_weights(std=0.5, seed=1)
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> MPT:
    return make_model(tokenizer)


@torch.no_grad()
def plain_losses(model: MPT, ids: list[int]) -> list[float]:
    """One prefix after the other, in fp64."""
    wide = MPT(model.config)
    wide.load_state_dict(model.state_dict())
    wide = wide.double().eval()
    return [-float(wide(torch.tensor([ids[:n]]))[0, -1].log_softmax(-1)[ids[n]]) for n in range(1, len(ids))]


@pytest.mark.parametrize("head_tokens", [1, 7, 4096])
def test_token_losses_are_log_softmax(
    model: MPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, head_tokens: int
) -> None:
    monkeypatch.setattr(MODULE, "_HEAD_TOKENS", head_tokens)
    ids = tokenizer.encode(TEXT)[:40]
    loss_T = token_losses(model, ids)
    assert (loss_T.dtype, loss_T.shape) == (torch.float32, (39,))
    assert loss_T.tolist() == pytest.approx(plain_losses(model, ids), rel=1e-4)


@pytest.mark.parametrize("ids", [[], [3]])
def test_a_loss_needs_a_token_before(model: MPT, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=f"two ids or more, got {len(ids)}"):
        token_losses(model, ids)


@pytest.mark.parametrize("edges", [(0, 4, 9, 20), (0, 1, 2), (0, 256), (0, 40)])
def test_buckets_hold_what_has_so_many_tokens_before_it(
    model: MPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, edges: tuple[int, ...]
) -> None:
    monkeypatch.setattr(MODULE, "EDGES", edges)
    ids = tokenizer.encode(TEXT)
    losses = plain_losses(model, ids[:41])
    sums = loss_by_position(model, tokenizer, [TEXT], context_tokens=41)
    rows = {first: row for first, *row in sums.buckets()}
    for first, end in zip(edges, (*edges[1:], 10**9), strict=True):
        places = [place for place in range(1, 41) if first <= place < end]  # tokens before the predicted one
        if not places:
            assert first not in rows
            continue
        nats = sum(losses[place - 1] for place in places)
        num_bytes = sum(len(tokenizer.token_bytes(ids[place])) for place in places)
        assert rows[first] == pytest.approx([len(places), nats / len(places), nats / math.log(2) / num_bytes], rel=1e-4)


def test_buckets_sum_to_the_whole(model: MPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "EDGES", (0, 3, 10, 50))
    texts = [TEXT, "Ein Tag.", TEXT[5:100]]
    seen: list[int] = []
    sums = loss_by_position(
        model, tokenizer, texts, context_tokens=60, on_book=lambda sums: seen.append(sums.num_books)
    )
    every = [tokenizer.encode(text)[:60] for text in texts]
    nats = sum(sum(plain_losses(model, ids)) for ids in every)
    predicted = [i for ids in every for i in ids[1:]]
    num_bytes = len(b"".join(map(tokenizer.token_bytes, predicted)))
    assert seen == [1, 2, 3]
    assert sum(n for _, n, _, _ in sums.buckets()) == len(predicted)
    assert sum(n * loss for _, n, loss, _ in sums.buckets()) == pytest.approx(nats, rel=1e-4)
    assert sums.loss == pytest.approx(nats / len(predicted), rel=1e-4)
    assert sums.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)


def test_all_of_a_text_but_its_first_token_is_counted(model: MPT, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    sums = loss_by_position(model, tokenizer, [TEXT], context_tokens=10**6)
    assert sum(sums.num_tokens) == len(ids) - 1
    assert sum(sums.num_bytes) == len(TEXT.encode()) - len(tokenizer.token_bytes(ids[0]))


def test_texts_without_two_tokens_are_passed_over(model: MPT, tokenizer: Tokenizer) -> None:
    sums = loss_by_position(model, tokenizer, ["", "D", "Ein"], context_tokens=10)
    assert sums.num_books == 1
    with pytest.raises(BookError, match="no text of two tokens"):
        loss_by_position(model, tokenizer, ["", "D"], context_tokens=10)


def test_a_context_past_learned_positions_is_refused(tokenizer: Tokenizer) -> None:
    model = make_model(tokenizer, alibi=False)
    with pytest.raises(RequestError, match=r"a context of 65 tokens .* learned positions for 64; ask for at most that"):
        loss_by_position(model, tokenizer, [TEXT], context_tokens=65)
    assert sum(loss_by_position(model, tokenizer, [TEXT], context_tokens=64).num_tokens) == 63


def test_a_context_of_one_token_is_a_wrong_call(model: MPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="context_tokens must be at least 2, got 1"):
        loss_by_position(model, tokenizer, [TEXT], context_tokens=1)


def test_a_fresh_sum_is_empty() -> None:
    assert LossByPosition().buckets() == []
