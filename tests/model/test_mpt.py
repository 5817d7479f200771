"""What the model promises beside its arithmetic: slopes that keep their dtype, lengths, fresh weights."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from epilogue.model import MPT, NAMED_SIZES, MPTConfig, alibi_slopes
from model.paged import Paged

TINY = NAMED_SIZES["tiny"]


def on_meta_and_back(model: MPT) -> MPT:
    with torch.device("meta"):
        empty = MPT(model.config)
    return empty.to_empty(device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to(torch.bfloat16).float(),
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: copy.deepcopy(model.to(torch.bfloat16)),
        on_meta_and_back,
        lambda model: on_meta_and_back(model).to(torch.bfloat16),
    ],
    ids=["as made", "bf16", "bf16 and back", "fp16", "fp64", "copied", "from meta", "from meta to bf16"],
)
def test_slopes_are_fp32_whatever_the_weights_are(change: Callable[[MPT], MPT]) -> None:
    config = replace(TINY, d_model=48, n_heads=24)  # slopes that bf16 cannot hold
    model = change(MPT(config))
    for block in model.transformer.blocks:
        assert block.attn.slopes_H.dtype == torch.float32
        assert torch.equal(block.attn.slopes_H, alibi_slopes(24))


def test_weights_assigned_to_a_model_made_on_meta_run() -> None:
    source = MPT(TINY)
    source.init_weights()
    with torch.device("meta"):
        model = MPT(TINY)
    model.load_state_dict(source.state_dict(), assign=True)
    ids = torch.randint(512, (1, 20))
    assert torch.equal(model(ids), source(ids))


def test_slopes_are_not_in_the_state_dict() -> None:
    assert not [name for name in MPT(TINY).state_dict() if "slopes" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    model = MPT(TINY).to(dtype)
    assert (model.dtype, model.device.type) == (dtype, "cpu")
    assert model(torch.zeros(1, 3, dtype=torch.int64)).dtype == dtype


@torch.no_grad()
def test_last_only_is_the_last_of_all() -> None:
    model, ids = MPT(TINY), torch.randint(512, (2, 9))
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


@torch.no_grad()
def test_alibi_reads_past_the_length_it_was_trained_on() -> None:
    model, ids = MPT(TINY), torch.randint(512, (1, 3 * TINY.max_seq_len))
    cache = Paged(TINY, capacity_tokens=ids.shape[1])
    parts = [cache.read(model, chunk) for chunk in ids.split(50, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_learned_positions_end_where_they_end() -> None:
    config = replace(TINY, attn_config=replace(TINY.attn_config, alibi=False))
    model = MPT(config)
    with pytest.raises(ValueError, match="65 tokens, but this model has learned positions for 64 only"):
        model(torch.zeros(1, 65, dtype=torch.int64))
    cache = Paged(config, capacity_tokens=100)
    cache.read(model, torch.zeros(1, 64, dtype=torch.int64))
    with pytest.raises(ValueError, match="65 tokens"):
        cache.read(model, torch.zeros(1, 1, dtype=torch.int64))
    assert cache.num_tokens == 64


@torch.no_grad()
def test_an_interrupted_pass_is_done_again() -> None:
    """What it has written lies behind the tokens that count."""
    model, ids = MPT(TINY), torch.randint(512, (1, 10))
    cache = Paged(TINY, capacity_tokens=10)
    cache.read(model, ids[:, :6])
    cache.read(model, torch.randint(512, (1, 3)))
    cache.num_tokens = 6
    torch.testing.assert_close(cache.read(model, ids[:, 6:]), model(ids)[:, 6:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_going_back_in_the_cache_is_forgetting() -> None:
    model, ids = MPT(TINY), torch.randint(512, (1, 12))
    cache = Paged(TINY, capacity_tokens=12)
    cache.read(model, ids)
    cache.num_tokens = 5
    torch.testing.assert_close(cache.read(model, ids[:, 5:]), model(ids)[:, 5:], rtol=1e-4, atol=1e-4)


def weights_after(config: MPTConfig, *, seed: int) -> dict[str, torch.Tensor]:
    model = MPT(config)
    model.init_weights(seed=seed)
    return model.state_dict()


def test_fresh_weights_follow_the_seed() -> None:
    torch.manual_seed(1)
    first = weights_after(TINY, seed=5)
    torch.manual_seed(2)
    again, other = weights_after(TINY, seed=5), weights_after(TINY, seed=6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_fresh_weights_have_the_deviations_they_were_given() -> None:
    weights = weights_after(replace(TINY, d_model=256, no_bias=False), seed=0)
    deviation = {name: x.std().item() for name, x in weights.items() if x.ndim == 2}
    for name, std in deviation.items():
        into_stream = "out_proj" in name or "down_proj" in name
        assert std == pytest.approx(0.02 / (2 if into_stream else 1), rel=0.05)  # two layers: sqrt(4)
    for name, x in weights.items():
        if name.endswith("bias"):
            assert not x.any()
        elif x.ndim == 1:
            assert (x == 1).all()


def test_a_fresh_model_knows_nothing() -> None:
    model, ids = MPT(TINY), torch.randint(512, (4, 65))
    model.init_weights()
    assert model.loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(512), abs=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loss_is_the_mean_over_all_targets_in_fp32(dtype: torch.dtype) -> None:
    model, ids = MPT(TINY).to(dtype), torch.randint(512, (2, 10))
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    chances = model(ids[:, :-1]).double().log_softmax(-1)
    expected = -chances.gather(-1, ids[:, 1:, None]).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
