"""Every context scores the same tokens, each with at least half a window before it."""

import math

import pytest
import torch

from epilogue.errors import BookError, RequestError
from epilogue.evals import ContextAblation, context_ablation
from epilogue.model import MPT, AttentionConfig, MPTConfig
from epilogue.text import Tokenizer, train_tokenizer

TEXT = "Nobody knew, not even the miller, where the river went behind the meadows and the mill. " * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], vocab_size=300)


def make_model(tokenizer: Tokenizer, *, alibi: bool = True) -> MPT:
    config = MPTConfig(
        d_model=16, n_heads=2, n_layers=1, vocab_size=tokenizer.vocab_size, max_seq_len=32,
        attn_config=AttentionConfig(alibi=alibi),
    )  # fmt: skip
    model = MPT(config)
    model.init_weights(std=0.5, seed=1)
    return model.eval()


@torch.no_grad()
def nats_of(model: MPT, ids: list[int], start: int, place: int) -> float:
    """Of one token, by a pass over what it is given alone."""
    return -float(model(torch.tensor([ids[start:place]]))[0, -1].double().log_softmax(-1)[ids[place]])


def test_it_is_the_plain_calculation(tokenizer: Tokenizer) -> None:
    model, ids = make_model(tokenizer), tokenizer.encode(TEXT)[:32]
    ablation = context_ablation(model, tokenizer, [TEXT], contexts=[32, 8], num_targets=8)
    long, short = (
        sum(nats_of(model, ids, start, place) for start, place in windows)
        for windows in (
            [(0, place) for place in range(24, 32)],
            [(20, place) for place in range(24, 28)] + [(24, place) for place in range(28, 32)],
        )
    )
    assert ablation.nats[0] == pytest.approx([short, long], rel=1e-4)
    num_bytes = sum(len(tokenizer.token_bytes(i)) for i in ids[24:])
    rows = ablation.rows()
    assert [row.context_tokens for row in rows] == [8, 32]
    assert rows[1].change == pytest.approx((long - short) / math.log(2) / num_bytes, abs=1e-4)
    assert rows[0].loss == pytest.approx(short / 8, rel=1e-4)


def test_intervals_are_over_books() -> None:
    ablation = ContextAblation(contexts=(2, 4), num_targets=2, nats=[[4.0, 3.0], [4.0, 1.0]], num_bytes=[2, 2])
    [first, second] = ablation.rows()
    bits = 1 / (2 * math.log(2))
    assert (first.change, first.change_error) == (0, 0)
    assert second.change == pytest.approx(-2 * bits)
    assert second.change_error == pytest.approx(1.96 * bits)
    assert second.bits_per_byte == pytest.approx(4 / 4 / math.log(2))


def test_short_books_are_passed_over(tokenizer: Tokenizer) -> None:
    seen: list[int] = []
    sizes = {"contexts": [8, 32], "num_targets": 4}
    model = make_model(tokenizer)
    context_ablation(
        model, tokenizer, ["short", TEXT, TEXT], on_book=lambda so_far: seen.append(so_far.num_books), **sizes
    )
    assert seen == [1, 2]
    with pytest.raises(BookError, match="no book has the 32 tokens"):
        context_ablation(model, tokenizer, ["short"], **sizes)


@pytest.mark.parametrize(
    ("contexts", "num_targets"), [([], 4), ([0], 4), ([7, 32], 4), ([12, 32], 16), ([8, 32], 0), ([8, 16], 16)]
)
def test_sizes_that_do_not_go(tokenizer: Tokenizer, contexts: list[int], num_targets: int) -> None:
    with pytest.raises(RequestError, match="targets"):
        context_ablation(make_model(tokenizer), tokenizer, [TEXT], contexts=contexts, num_targets=num_targets)


def test_learned_positions_end(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="learned positions for 32; ask for at most that"):
        context_ablation(make_model(tokenizer, alibi=False), tokenizer, [TEXT], contexts=[64], num_targets=8)
