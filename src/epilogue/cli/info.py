"""`epilogue info`: what a model is and what it costs."""

import json

import torch
from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_config
from epilogue.cli.settings import BUNDLED_MODEL
from epilogue.model import NAMED_SIZES, MPTConfig, flops_per_token, kv_bytes_per_token, num_parameters

_LENGTHS = (2048, 16384, 65536, 83968)


def run_info(model: str | None, *, as_json: bool) -> None:
    """Describe a checkpoint, or a named size without weights."""
    is_named = model in NAMED_SIZES and model is not None
    config = NAMED_SIZES[model] if is_named and model else load_config(model or BUNDLED_MODEL)
    if as_json:
        print(json.dumps(_as_dict(config)))
    else:
        _draw(model or "epilogue-tiny, the bundled model", config)


def _as_dict(config: MPTConfig) -> dict[str, object]:
    attention = config.attn_config
    return {
        "parameters": num_parameters(config),
        "layers": config.n_layers,
        "heads": config.n_heads,
        "kv_heads": config.kv_n_heads,
        "d_model": config.d_model,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_seq_len,
        "alibi_bias_max": attention.alibi_bias_max if attention.alibi else None,
        "clip_qkv": attention.clip_qkv,
        "qk_ln": attention.qk_ln,
        "kv_bytes_per_token_bf16": kv_bytes_per_token(config, torch.bfloat16),
        "weight_bytes_bf16": 2 * num_parameters(config),
        "read_flops": {str(n): n * flops_per_token(config, context_tokens=n // 2, with_head=False) for n in _LENGTHS},
    }


def _draw(name: str, config: MPTConfig) -> None:
    facts = _as_dict(config)
    attention = config.attn_config
    table = Table(title=name, show_header=False, box=None, title_justify="left")
    table.add_row("parameters", f"{facts['parameters']:,}  ({2 * num_parameters(config) / 1e9:.2f} GB in bf16)")
    table.add_row(
        "shape", f"{config.n_layers} layers, {config.n_heads} heads of {config.head_dim}, d_model {config.d_model}"
    )
    table.add_row("keys and values", f"{config.kv_n_heads} heads ({attention.attn_type})")
    table.add_row("vocabulary", f"{config.vocab_size:,}")
    table.add_row("trained length", f"{config.max_seq_len:,} tokens")
    positions = f"ALiBi, bias max {attention.alibi_bias_max:g}" if attention.alibi else "learned"
    table.add_row("positions", positions)
    table.add_row("clip_qkv", "none" if attention.clip_qkv is None else f"{attention.clip_qkv:g}")
    for length in _LENGTHS:
        cache = length * kv_bytes_per_token(config, torch.bfloat16) / 2**30
        flops = length * flops_per_token(config, context_tokens=length // 2, with_head=False)
        table.add_row(
            f"at {length:,} tokens", f"{cache:.2f} GiB of keys and values in bf16, {flops / 1e12:,.1f} TFLOP to read"
        )
    Console().print(table)
