"""Logits are transformers' own MPT's, to twice the error fp32 itself makes."""

import pytest
import torch
from torch import Tensor
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from epilogue.model import MPT, AttentionConfig, MPTConfig, alibi_slopes
from model.paged import Paged

VOCABULARY = 97


def pair(n_heads: int, clip_qkv: float | None) -> tuple[MPT, MptForCausalLM]:
    """Our model and theirs with the same weights, large enough that a clamp at 1 bites."""
    d_model = 16 * n_heads
    config = MPTConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=2,
        vocab_size=VOCABULARY,
        max_seq_len=1000,
        no_bias=True,
        attn_config=AttentionConfig(alibi=True, clip_qkv=clip_qkv),
    )
    theirs = MptForCausalLM(
        MptConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_layers=2,
            vocab_size=VOCABULARY,
            max_seq_len=1000,
            no_bias=True,
            attn_config={"alibi": True, "clip_qkv": clip_qkv},
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=d_model**-0.5 if "wte" not in name else 1.0)
    weights = theirs.state_dict()
    del weights["lm_head.weight"]  # tied, and not in the released files
    ours = MPT(config).eval()
    ours.load_state_dict(weights)
    return ours, theirs


def errors(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    difference = logits.double() - truth
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def assert_as_good_as(ours: Tensor, theirs: Tensor, truth: Tensor) -> None:
    floor = 2 * torch.finfo(torch.float32).eps * truth.abs().max().item()
    for our_error, their_error in zip(errors(ours, truth), errors(theirs, truth), strict=True):
        assert our_error <= 2 * their_error + floor


@pytest.mark.parametrize("clip_qkv", [None, 1.0])
@pytest.mark.parametrize(("n_heads", "length"), [(1, 1), (1, 63), (3, 63), (3, 1000), (8, 1000), (12, 63)])
@torch.no_grad()
def test_same_logits(n_heads: int, length: int, clip_qkv: float | None) -> None:
    ours, theirs = pair(n_heads, clip_qkv)
    ids = torch.randint(VOCABULARY, (2, length))
    fp32, their_fp32 = ours(ids), theirs(ids).logits
    ours.double().set_attention_backend("reference")
    assert_as_good_as(fp32, their_fp32, ours(ids))


@torch.no_grad()
def test_same_truth() -> None:
    """In fp64 the two agree as far as their softmax, always in fp32, lets them: ours may stand for both above."""
    ours, theirs = pair(3, 1.0)
    ids = torch.randint(VOCABULARY, (2, 63))
    torch.testing.assert_close(ours.double()(ids), theirs.double()(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias_max", [8, 16])
def test_same_biases(bias_max: int) -> None:
    for n_heads in range(1, 64):
        for length in (1, 2, 8, 13, 64, 195, 256):
            theirs_H1S = build_mpt_alibi_tensor(n_heads, length, bias_max)
            distance_S = torch.arange(length - 1, -1, -1)
            ours_H1S = -alibi_slopes(n_heads, bias_max)[:, None, None] * distance_S
            torch.testing.assert_close(ours_H1S, theirs_H1S, rtol=1e-6, atol=0)


@torch.no_grad()
def test_a_clamp_is_heard() -> None:
    ids = torch.randint(VOCABULARY, (1, 63))
    clamped, _ = pair(3, 1.0)
    free, _ = pair(3, None)
    free.load_state_dict(clamped.state_dict())
    assert not torch.allclose(clamped(ids), free(ids), rtol=0.01)


@pytest.mark.parametrize("step", [1, 7, 63])
@torch.no_grad()
def test_cached_reading(step: int) -> None:
    ours, theirs = pair(3, 1.0)
    ids = torch.randint(VOCABULARY, (2, 63))
    cache = Paged(ours.config, capacity_tokens=63, batch=2)
    parts = [cache.read(ours, chunk) for chunk in ids.split(step, dim=1)]
    their_logits = theirs(ids).logits
    ours.double().set_attention_backend("reference")
    assert_as_good_as(torch.cat(parts, dim=1), their_logits, ours(ids))
