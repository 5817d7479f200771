"""A model's weights to a checkpoint directory in the Hugging Face layout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from epilogue.checkpoint.dtypes import check_dtype, convert, prevailing_dtype
from epilogue.checkpoint.files import CONFIG, SAFETENSORS, SAFETENSORS_INDEX, reason
from epilogue.checkpoint.inventory import departures
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.checkpoint.staging import Staging
from epilogue.errors import CheckpointError
from epilogue.model import MPTConfig, config_to_dict


def save_checkpoint(
    directory: str | Path,
    state: Mapping[str, Tensor],
    config: MPTConfig,
    *,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    card: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json, generation_config.json and safetensors under MosaicML's names.

    A checkpoint in the directory is replaced, its surplus shards included; until everything new is on the disk it
    stays as it was, and no crash leaves a mixture that can be loaded.

    Args:
        directory: made if need be.
        state: ``MPT.state_dict()``; tensors on any device.
        config: what the state belongs to.
        dtype: float32, float16, bfloat16 or float64; None writes every tensor as it is, bit for bit.
        tokenizer_file: copied to tokenizer.json.
        card: the content of README.md.
        max_shard_bytes: more than this go to several files with an index; a larger tensor gets a file of its own.

    Raises:
        ValueError: the state does not fit the config, another dtype, or a max_shard_bytes below 1.
        CheckpointError: the files cannot be written, or a value is too large for the dtype.

    Memory: one shard on the host. Disk: the old and the new checkpoint at once.
    """
    _check_call(state, config, dtype, max_shard_bytes)
    extras = {"generation_config.json": _as_json(_generation_config(config))}
    if card is not None:
        extras["README.md"] = card
    write_directory(
        directory, state, config_json(config, dtype or prevailing_dtype(state.values())),
        dtype=dtype, tokenizer_file=tokenizer_file, extras=extras, max_shard_bytes=max_shard_bytes,
    )  # fmt: skip


def write_directory(
    directory: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    extras: Mapping[str, str],
    max_shard_bytes: int,
    single: str = SAFETENSORS,
) -> None:
    """Write tensors, a config.json of this content and other text files, all at once or not at all.

    Args:
        directory: made if need be; a checkpoint in it is replaced.
        state: tensors by name; none is checked.
        config: the content of config.json.
        dtype: that of all floats, None for their own.
        tokenizer_file: copied to tokenizer.json.
        extras: text files by name.
        max_shard_bytes: more than this go to several files with an index.
        single: what the file of weights is called if there is one only.

    Raises:
        CheckpointError: the files cannot be written, or a value is too large for the dtype.
    """
    shards = _shards(state, dtype, max_shard_bytes, single)
    try:
        with Staging(Path(directory)) as staging:
            for file, names in shards.items():
                _write_shard(staging.path(file), {name: state[name] for name in names}, dtype)
            if len(shards) > 1:
                staging.path(SAFETENSORS_INDEX).write_text(_as_json(_index(shards, state, dtype)), encoding="utf-8")
            for name, text in extras.items():
                staging.path(name).write_text(text, encoding="utf-8")
            if tokenizer_file is not None:
                shutil.copyfile(tokenizer_file, staging.path(TOKENIZER))
            staging.path(CONFIG).write_text(_as_json(config), encoding="utf-8")
            staging.commit(seal=CONFIG, stale=_stale(Path(directory), shards))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {directory} cannot be written ({reason(error)}); make room or choose another directory"
        ) from error


def _check_call(
    state: Mapping[str, Tensor], config: MPTConfig, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    check_dtype(dtype)
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    if found := departures(state, config):
        raise ValueError(f"the state does not fit the config ({found})")
    for tensor in state.values():
        check_dtype(tensor.dtype)


def _stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _num_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * _stored_dtype(tensor, dtype).itemsize


def _shards(
    state: Mapping[str, Tensor], dtype: torch.dtype | None, most_bytes: int, single: str
) -> dict[str, list[str]]:
    """Tensor names by file, in the order of the state."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        size = _num_bytes(tensor, dtype)
        if groups[-1] and filled + size > most_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {single: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def _write_shard(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    on_host = {
        name: convert(name, tensor, dtype=_stored_dtype(tensor, dtype), device="cpu")
        for name, tensor in tensors.items()
    }
    save_file(on_host, path, metadata={"format": "pt"})


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _index(shards: dict[str, list[str]], state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(_num_bytes(tensor, dtype) for tensor in state.values())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }


def config_json(config: MPTConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The content of a config.json as other programs want it, for weights of this dtype."""
    content = config_to_dict(config)
    # Both spellings exist and readers disagree on which wins; auto_map would point at code that is not there.
    for key in ("dtype", "auto_map"):
        content.pop(key, None)
    # transformers checks types: a whole number where it expects one, a float for the clamp.
    for key in ("attn_pdrop", "alibi_bias_max"):
        content["attn_config"][key] = _whole(content["attn_config"][key])
    content["expansion_ratio"] = _whole(content["expansion_ratio"])
    # transformers' own MPT knows the norms' epsilon by another name.
    return content | {"torch_dtype": str(dtype).removeprefix("torch."), "layer_norm_epsilon": config.norm_eps}


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _generation_config(config: MPTConfig) -> dict[str, Any]:
    ids = {key: config.extra.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {"use_cache": True} | {key: value for key, value in ids.items() if value is not None}


def _stale(directory: Path, shards: dict[str, list[str]]) -> list[str]:
    """Weights of an earlier save that the new ones do not overwrite."""
    old = [path.name for path in directory.glob("model-*-of-*.safetensors")] + [SAFETENSORS, SAFETENSORS_INDEX]
    return [name for name in old if name not in shards]
