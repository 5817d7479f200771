"""Tiny checkpoints in every layout that is read, for the tests beside this file."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from epilogue.model import MPT, AttentionConfig, MPTConfig, config_to_dict

WTE = "transformer.wte.weight"
QKV = "transformer.blocks.0.attn.Wqkv.weight"


def tiny_config(**changes: object) -> MPTConfig:
    config = MPTConfig(
        d_model=16,
        n_heads=4,
        n_layers=2,
        expansion_ratio=2,
        max_seq_len=32,
        vocab_size=24,
        no_bias=True,
        attn_config=AttentionConfig(alibi=True),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def with_positions(max_seq_len: int = 32) -> MPTConfig:
    return tiny_config(max_seq_len=max_seq_len, attn_config=AttentionConfig(alibi=False))


def tiny_state(config: MPTConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    model = MPT(config)
    model.init_weights(std=0.5)
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


def write_config(directory: Path, config: MPTConfig, **changes: object) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_to_dict(config) | changes))


def write_index(index: Path, weight_map: Mapping[str, object]) -> None:
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def halves(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = list(state)
    middle = len(names) // 2
    return {n: state[n] for n in names[:middle]}, {n: state[n] for n in names[middle:]}


def write_layout(directory: Path, config: MPTConfig, state: Mapping[str, Tensor], *, layout: str) -> Path:
    """A directory as other programs leave it."""
    write_config(directory, config)
    first, second = halves(state)
    if layout == "safetensors":
        save_file(dict(state), directory / "model.safetensors")
    elif layout == "safetensors shards":
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for file, part in zip(names, (first, second), strict=True):
            save_file(part, directory / file)
        weight_map = dict.fromkeys(first, names[0]) | dict.fromkeys(second, names[1])
        write_index(directory / "model.safetensors.index.json", weight_map)
    elif layout == "bin":
        torch.save(dict(state), directory / "pytorch_model.bin")
    elif layout == "old bin":
        torch.save(dict(state), directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "bin shards":
        names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for file, part in zip(names, (first, second), strict=True):
            torch.save(part, directory / file)
        weight_map = dict.fromkeys(first, names[0]) | dict.fromkeys(second, names[1])
        write_index(directory / "pytorch_model.bin.index.json", weight_map)
    elif layout == "flat pt":
        torch.save({f"model.{name}": tensor for name, tensor in state.items()}, directory / "ep1.pt")
    else:
        raise AssertionError(layout)
    return directory


LAYOUTS = ("safetensors", "safetensors shards", "bin", "old bin", "bin shards", "flat pt")


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].shape == other[name].shape, name
        assert torch.equal(bits(one[name]), bits(other[name])), name
