"""What a model costs, computed from its configuration alone: parameters, arithmetic, memory."""

import torch

from epilogue.model.config import MPTConfig

# A scale, in fp16 as most writers store it, and a zero point.
_GROUP_BYTES = 2 + 2


def num_parameters(config: MPTConfig) -> int:
    """Weights in the state dict; a tied head counts once."""
    c, f = config.d_model, config.ffn_width
    biases = 0 if config.no_bias else 1
    norm_biases = 0 if config.norm_type.endswith("rmsnorm") else biases
    block = config.qkv_width * (c + config.has_qkv_bias) + c * (c + biases)
    block += f * (c + biases) + c * (f + biases)
    block += 2 * c * (1 + norm_biases)
    if config.attn_config.qk_ln:
        block += (c + config.kv_n_heads * config.head_dim) * (1 + norm_biases)
    if config.attn_config.qk_gn:
        block += 2 * config.head_dim * (1 + norm_biases)
    embeddings = config.vocab_size * c * (1 if config.tie_word_embeddings else 2)
    positions = config.max_seq_len * c if config.has_position_embedding else 0
    return embeddings + positions + config.n_layers * block + c * (1 + norm_biases)


def weight_bytes(config: MPTConfig, dtype: torch.dtype) -> int:
    """Bytes of the weights in memory: quantised ones as codes, scales and zero points, all others in ``dtype``."""
    kind = config.quantization
    if kind is None:
        return num_parameters(config) * dtype.itemsize
    c, f = config.d_model, config.ffn_width
    packed_bytes, packed = 0, 0
    for inputs, outputs in ((c, config.qkv_width), (c, c), (c, f), (f, c)):
        groups = 1 if kind.group_size is None else -(-inputs // kind.group_of(inputs))
        packed_bytes += outputs * (inputs * kind.bits // 8 + groups * _GROUP_BYTES)
        packed += outputs * inputs
    return config.n_layers * packed_bytes + (num_parameters(config) - config.n_layers * packed) * dtype.itemsize


def flops_per_token(config: MPTConfig, *, context_tokens: int, with_head: bool = True) -> int:
    """Floating-point operations of a forward pass for one token that sees ``context_tokens`` keys.

    A multiply-add counts twice; norms, activations and softmax are left out. The mean over a whole causal read of n
    tokens is the figure at n/2. A training step takes three times as many.
    """
    c = config.d_model
    linear = config.n_layers * (c * config.qkv_width + c * c + 2 * c * config.ffn_width)
    attention = config.n_layers * 2 * c * context_tokens
    head = c * config.vocab_size if with_head else 0
    return 2 * (linear + attention + head)


def read_flops(config: MPTConfig, num_tokens: int, *, visited_pairs: int | None = None) -> int:
    """Floating-point operations of reading a text, to know what comes next: logits of its last token alone.

    Of the other tokens the last layer makes keys and values; its one product for those makes their queries, too.

    Args:
        config: of the model.
        num_tokens: of the text.
        visited_pairs: (query, key) pairs that were visited, all query heads and layers together; if None those of dense
            causal attention, n * (n + 1) / 2 a head, and n in the last layer. Half of what a kernel does that masks the
            later keys away.
    """
    if visited_pairs is None:
        causal = num_tokens * (num_tokens + 1) // 2
        visited_pairs = config.n_heads * ((config.n_layers - 1) * causal + num_tokens)
    c = config.d_model
    behind_attention = 2 * (c * c + 2 * c * config.ffn_width)
    linear = num_tokens * flops_per_token(config, context_tokens=0, with_head=False)
    linear -= (num_tokens - 1) * behind_attention
    return linear + 4 * config.head_dim * visited_pairs + 2 * c * config.vocab_size


def kv_bytes_per_token(config: MPTConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values one token leaves in a dense cache, all layers together."""
    return 2 * config.n_layers * config.kv_n_heads * config.head_dim * dtype.itemsize
