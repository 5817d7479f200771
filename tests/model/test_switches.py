"""Every switch of an MPT, against a second implementation in fp64 (eager_mpt), values and gradients."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from epilogue.model import MPT, AttentionConfig, MPTConfig
from model.eager_mpt import eager_logits
from model.paged import Paged

BASE = MPTConfig(
    d_model=48,
    n_heads=6,
    n_layers=2,
    vocab_size=50,
    max_seq_len=40,
    no_bias=True,
    attn_config=AttentionConfig(alibi=True),
)


def with_attention(**switches: Any) -> MPTConfig:
    return replace(BASE, attn_config=replace(BASE.attn_config, **switches))


SWITCHES = {
    "plain": BASE,
    "qk_ln": with_attention(qk_ln=True),
    "qk_gn": with_attention(qk_gn=True),
    "clip_qkv": with_attention(clip_qkv=0.5),
    "clip_qkv and qk_ln": with_attention(clip_qkv=0.5, qk_ln=True),
    "biases": replace(BASE, no_bias=False),
    "biases and qk_gn": replace(with_attention(qk_gn=True), no_bias=False),
    "attention_bias on": replace(BASE, attention_bias=True),
    "attention_bias off": replace(BASE, no_bias=False, attention_bias=False),
    "rmsnorm": replace(BASE, norm_type="rmsnorm", no_bias=False),
    "rmsnorm and qk_ln": replace(with_attention(qk_ln=True), norm_type="low_precision_rmsnorm", norm_eps=0.1),
    "norm_eps": replace(BASE, norm_eps=0.1),
    "learned positions": with_attention(alibi=False),
    "no positions": replace(with_attention(alibi=False), learned_pos_emb=False),
    "grouped heads": with_attention(attn_type="grouped_query_attention", kv_n_heads=2),
    "grouped heads and qk_ln": with_attention(attn_type="grouped_query_attention", kv_n_heads=3, qk_ln=True),
    "one key head": with_attention(attn_type="multiquery_attention"),
    "softmax_scale": with_attention(softmax_scale=0.7),
    "logit_scale": replace(BASE, logit_scale=0.3),
    "logit_scale by width": replace(BASE, logit_scale="inv_sqrt_d_model"),
    "untied head": replace(BASE, tie_word_embeddings=False),
    "alibi_bias_max 16": with_attention(alibi_bias_max=16),
    "embedding_fraction": replace(BASE, embedding_fraction=0.1),
    "expansion_ratio": replace(BASE, expansion_ratio=1.5),
}
each_switch = pytest.mark.parametrize("config", SWITCHES.values(), ids=SWITCHES.keys())


def busy_model(config: MPTConfig) -> MPT:
    """Weights so large that every switch shows; gains and biases are drawn too."""
    model = MPT(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=0.3)
    return model


@each_switch
def test_logits_and_gradients(config: MPTConfig) -> None:
    model = busy_model(config)
    weights = {name: x.detach().clone().requires_grad_() for name, x in model.state_dict().items()}
    ids, grad_out = torch.randint(50, (2, 33)), torch.randn(2, 33, 50, dtype=torch.float64)
    expected = eager_logits(config, weights, ids)
    logits = model(ids)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    logits.backward(grad_out)
    expected.backward(grad_out)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "name",
    [
        "clip_qkv",
        "norm_eps",
        "no positions",
        "softmax_scale",
        "logit_scale",
        "logit_scale by width",
        "alibi_bias_max 16",
    ],
)
@torch.no_grad()
def test_a_switch_without_weights_of_its_own_is_heard(name: str) -> None:
    """The same weights under the plain configuration give other logits."""
    model, plain = busy_model(SWITCHES[name]), busy_model(BASE)
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(50, (1, 33))
    assert not torch.allclose(model(ids), plain(ids), rtol=1e-3)


@each_switch
@torch.no_grad()
def test_any_way_of_feeding_the_cache(config: MPTConfig) -> None:
    model, ids = busy_model(config), torch.randint(50, (2, 33))
    whole = model(ids)
    for cuts in (range(34), [0, 1, 8, 9, 33], [0, 33]):
        cache = Paged(config, capacity_tokens=33, batch=2)
        parts = [cache.read(model, ids[:, a:b]) for a, b in pairwise(cuts)]
        # Everything is fp64 but the keys and values on their pages.
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-6 * whole.abs().max().item())
        assert cache.num_tokens == 33


@pytest.mark.parametrize("name", ["plain", "qk_ln", "one key head", "learned positions"])
def test_training_gradients_are_the_references(name: str) -> None:
    """Over several query tiles, in fp64."""
    config = replace(SWITCHES[name], max_seq_len=600)
    model, ids = busy_model(config), torch.randint(50, (1, 601))
    gradients = []
    for backend in ("reference", "cpu"):
        model.zero_grad()
        model.set_attention_backend(backend)
        logits = model(ids[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append([x.grad.clone() for x in model.parameters()])
    for reference, cpu in zip(*gradients, strict=True):
        torch.testing.assert_close(cpu, reference, rtol=1e-9, atol=1e-11)
