"""A second MPT, written apart from the package's: one function of a state dict, eager, in the dtype of the weights.

The whole score matrix is in memory and every head's keys are repeated, so that each switch is one visible line.
"""

import math

import torch
from torch import Tensor

from epilogue.model import MPTConfig, alibi_slopes


def eager_logits(config: MPTConfig, weights: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    """Logits of a sequence read from its beginning."""
    embedding = weights["transformer.wte.weight"]
    x = embedding[ids_BT]
    if config.learned_pos_emb and not config.attn_config.alibi:
        x = x + weights["transformer.wpe.weight"][: ids_BT.shape[1]]
    # Values stay, gradients shrink.
    x = config.embedding_fraction * x + (1 - config.embedding_fraction) * x.detach()
    for layer in range(config.n_layers):
        at = f"transformer.blocks.{layer}."
        x = x + _attend(config, weights, at + "attn.", _norm(config, weights, at + "norm_1", x))
        hidden = _linear(weights, at + "ffn.up_proj", _norm(config, weights, at + "norm_2", x))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + _linear(weights, at + "ffn.down_proj", hidden)
    x = _norm(config, weights, "transformer.norm_f", x)
    logits = x @ (embedding if config.tie_word_embeddings else weights["lm_head.weight"]).T
    if config.logit_scale == "inv_sqrt_d_model":
        return logits / math.sqrt(config.d_model)
    return logits if config.logit_scale is None else logits * config.logit_scale


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0)


def _norm(config: MPTConfig, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if "rmsnorm" not in config.norm_type:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    return x * weights[name + ".weight"] + weights.get(name + ".bias", 0)


def _attend(config: MPTConfig, weights: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    settings = config.attn_config
    batch, length, width = x.shape
    heads, head_dim = config.n_heads, width // config.n_heads
    kv_heads = {"multihead_attention": heads, "multiquery_attention": 1}.get(settings.attn_type, settings.kv_n_heads)

    fused = _linear(weights, at + "Wqkv", x)
    if settings.clip_qkv:
        fused = fused.clip(-settings.clip_qkv, settings.clip_qkv)
    q, k, v = fused.tensor_split([width, width + kv_heads * head_dim], dim=-1)
    if settings.qk_ln:
        q, k = _norm(config, weights, at + "q_ln", q), _norm(config, weights, at + "k_ln", k)
    q, k, v = (y.reshape(batch, length, -1, head_dim) for y in (q, k, v))
    if settings.qk_gn:
        q, k = _norm(config, weights, at + "q_ln", q), _norm(config, weights, at + "k_ln", k)

    scale = 1 / math.sqrt(head_dim) if settings.softmax_scale is None else settings.softmax_scale
    place = torch.arange(length)
    distance = place[:, None] - place
    slopes = alibi_slopes(heads, settings.alibi_bias_max).to(x.dtype) if settings.alibi else torch.zeros(heads)
    out = []
    for head in range(heads):
        shared = head // (heads // kv_heads)  # neighbouring heads share
        scores = q[:, :, head] @ k[:, :, shared].transpose(1, 2) * scale - slopes[head] * distance
        scores = scores.masked_fill(distance < 0, float("-inf"))
        out.append(scores.softmax(-1) @ v[:, :, shared])
    return _linear(weights, at + "out_proj", torch.cat(out, dim=-1))
