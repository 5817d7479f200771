"""`epilogue info`: what a model is and what it costs."""

import json

import torch
from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_config
from epilogue.cli.settings import BUNDLED_MODEL, in_words, name_of, named_size
from epilogue.engine import available_bytes
from epilogue.model import MPTConfig, Quantization, kv_bytes_per_token, num_parameters, read_flops, weight_bytes

_LENGTHS = (2048, 16384, 65536, 83968)
_DTYPE = torch.bfloat16


def run_info(model: str | None, *, as_json: bool) -> None:
    """Describe a checkpoint, or a named size without weights; only the config is fetched and read.

    Raises:
        CheckpointError: there is no such model, or its config asks for what is not run here.
    """
    config = load_config(BUNDLED_MODEL) if model is None else named_size(model) or load_config(model)
    if as_json:
        print(json.dumps(_as_dict(config)))
    else:
        _draw(name_of(model), config)


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
        "bits": config.quantization.bits if config.quantization else None,
        "group_size": config.quantization.group_size if config.quantization else None,
        "kv_bytes_per_token_bf16": kv_bytes_per_token(config, _DTYPE),
        "weight_bytes_bf16": weight_bytes(config, _DTYPE),
        "read_flops": {str(length): read_flops(config, length) for length in _lengths(config)},
    }


def _lengths(config: MPTConfig) -> list[int]:
    """Texts worth a row; learned positions end where they end."""
    return [n for n in _LENGTHS if not config.has_position_embedding or n <= config.max_seq_len]


def _draw(name: str, config: MPTConfig) -> None:
    console = Console(highlight=False, markup=False)
    attention = config.attn_config
    kinds = [
        f"clip_qkv {attention.clip_qkv:g}" if attention.clip_qkv else "",
        "QK norm" if attention.qk_ln or attention.qk_gn else "",
        f"{config.kv_n_heads} heads of keys and values" if config.kv_n_heads != config.n_heads else "",
    ]
    facts = Table(title=name, show_header=False, box=None, title_justify="left", title_style="bold", pad_edge=False)
    where = " of memory" if config.quantization else " in bf16"
    facts.add_row("parameters", f"{num_parameters(config):,}, {in_words(weight_bytes(config, _DTYPE))}{where}")
    if config.quantization:
        facts.add_row("quantised", _quantised(config.quantization))
    shape = f"{config.n_layers} layers, {config.n_heads} heads of {config.head_dim}, d_model {config.d_model}"
    facts.add_row("shape", ", ".join([shape, *filter(None, kinds)]))
    facts.add_row("vocabulary", f"{config.vocab_size:,} tokens")
    facts.add_row("trained on", f"{config.max_seq_len:,} tokens at a time")
    alibi = f"ALiBi, bias max {attention.alibi_bias_max:g}: reads longer texts than that too"
    facts.add_row("positions", alibi if attention.alibi else "learned: reads nothing longer than that")
    facts.add_row("this machine", f"{in_words(available_bytes(torch.device('cpu')))} of memory available")
    console.print(facts)
    console.print()
    console.print(_costs(config))


def _quantised(found: Quantization) -> str:
    groups = {None: "", -1: ", one group an output"}.get(found.group_size, f", groups of {found.group_size}")
    return f"{found.bits} bits in the blocks{groups}; the rest in bf16"


def _costs(config: MPTConfig) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("a text of", "its keys and values", "with the weights", "arithmetic to read it"):
        table.add_column(heading, justify="right")
    for length in _lengths(config):
        cache = length * kv_bytes_per_token(config, _DTYPE)
        table.add_row(
            f"{length:,} tokens",
            in_words(cache),
            in_words(cache + weight_bytes(config, _DTYPE)),
            f"{read_flops(config, length) / 1e12:,.1f} TFLOP",
        )
    return table
