"""Quantised files as other programs leave them, packed here one number at a time from the table in docs/formats.md."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoint.material import tiny_config, tiny_state, write_config
from epilogue.model import MPTConfig

LAYERS = ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")


def quant_config(**changes: object) -> MPTConfig:
    """Widths that fill whole words, and are no multiple of one another's groups."""
    return tiny_config(d_model=32, expansion_ratio=3, **changes)


def _word(values: list[int], bits: int) -> int:
    word = 0
    for place, value in enumerate(values):
        assert 0 <= value < 2**bits
        word |= value << bits * place
    return word - 2**32 if word >= 2**31 else word


def packed_layer(
    outputs: int,
    inputs: int,
    layout: str,
    *,
    bits: int = 4,
    group: int = 16,
    is_symmetric: bool = False,
    has_order: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """A layer's tensors, and the weight they stand for in fp64."""
    group = inputs if group == -1 or layout == "kobold-0" else group
    groups, per = -(-inputs // group), 32 // bits
    codes = torch.randint(2**bits, (inputs, outputs)).tolist()
    zeros = torch.randint(1, 2**bits, (groups, outputs))
    zeros = torch.full_like(zeros, 2 ** (bits - 1)) if is_symmetric else zeros
    dtype = torch.float32 if layout in ("kobold-0", "kobold-1") else torch.float16
    scales = (torch.rand(groups, outputs) * 0.02 + 1e-3).to(dtype)
    groups_of = torch.arange(inputs) // group
    groups_of = groups_of[torch.randperm(inputs)] if has_order else groups_of

    tensors = {
        "qweight": torch.tensor(
            [
                [_word([codes[row * per + k][o] for k in range(per)], bits) for o in range(outputs)]
                for row in range(inputs // per)
            ],
            dtype=torch.int32,
        )
    }
    if layout == "kobold-0":
        tensors |= {"zeros": (zeros * scales).T.contiguous(), "scales": scales.T.contiguous()}
    else:
        stored = (zeros if layout == "gptq_v2" else zeros - 1).tolist()
        tensors["qzeros"] = torch.tensor(
            [[_word(row[c : c + per], bits) for c in range(0, outputs, per)] for row in stored], dtype=torch.int32
        )
        tensors["scales"] = scales
    if layout in ("kobold-0", "kobold-1"):
        tensors["bias"] = torch.zeros(outputs)
    else:
        tensors["g_idx"] = groups_of.to(torch.int32)
    weight = torch.tensor(
        [
            [float(scales[groups_of[i], o]) * (codes[i][o] - int(zeros[groups_of[i], o])) for i in range(inputs)]
            for o in range(outputs)
        ],
        dtype=torch.float64,
    )
    return tensors, weight


def quantised_state(config: MPTConfig, layout: str, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file, and the dense fp64 weights they stand for."""
    stored = tiny_state(config, torch.float16)
    weights: dict[str, Tensor] = {}
    for name in list(stored):
        layer = name.removesuffix(".weight")
        if layer.endswith(LAYERS):
            outputs, inputs = stored.pop(name).shape
            tensors, weights[name] = packed_layer(outputs, inputs, layout, **options)
            stored |= {f"{layer}.{leaf}": tensor for leaf, tensor in tensors.items()}
    return stored, weights


def write_quantised(
    directory: Path, stored: dict[str, Tensor], config: MPTConfig, *, name: str = "model.safetensors", **said: object
) -> Path:
    write_config(directory, config, **said)
    if name.endswith(".safetensors"):
        save_file(stored, directory / name)
    else:
        torch.save(stored, directory / name)
    return directory


def beside(name: str, content: dict[str, object]) -> Callable[[Path], object]:
    """Writes one more JSON file into a directory."""
    return lambda directory: (directory / name).write_text(json.dumps(content))
