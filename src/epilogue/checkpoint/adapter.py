"""Low-rank adapters on disk, in PEFT's files (adapter_config.json, adapter_model.safetensors), and merged into weights.

Beside them lies the config.json of the model they were trained in, which may differ from its base in slopes, clamp and
trained length. The files are those of Hugging Face's peft; its LoraConfig has the fields.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from epilogue.checkpoint.dtypes import prevailing_dtype
from epilogue.checkpoint.files import CONFIG, read_json, reason
from epilogue.checkpoint.load import ADAPTER_CONFIG, load_checkpoint
from epilogue.checkpoint.metadata import TOKENIZER, load_config
from epilogue.checkpoint.save import config_json, save_checkpoint, write_directory
from epilogue.checkpoint.staging import whole_folder
from epilogue.errors import CheckpointError
from epilogue.model import MPT, LowRankAdapter, QuantLinear, adapters, dense

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# What would change the arithmetic, and the values at which it does not.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "alpha_pattern": ({}, None),
    "use_qalora": (False, None),
}


def adapter_weights(model: MPT) -> dict[str, Tensor]:
    """The weights of a model's adapters under PEFT's names."""
    return {
        f"{_PREFIX}{name}{end}": weight.detach()
        for name, adapter in adapters(model)
        for end, weight in ((_DOWN, adapter.down), (_UP, adapter.up))
    }


def save_adapter(
    directory: Path,
    model: MPT,
    *,
    base: str,
    tokenizer_file: Path | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model's adapters, all at once or not at all; nothing of the weights they stand beside.

    Args:
        directory: made if need be.
        model: with adapters of one rank, scale and dropout.
        base: where the frozen weights came from: a directory, or ``owner/name``.
        tokenizer_file: copied to tokenizer.json.
        weights: what ``adapter_weights`` gives, put together by the caller where the model's own lie in parts.

    Raises:
        CheckpointError: the files cannot be written.
    """
    found = dict(adapters(model))
    first = next(iter(found.values()))
    rank = int(first.down.shape[0])
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": first.dropout.p,
        "target_modules": sorted({name.rpartition(".")[2] for name in found}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_directory(
        directory, weights or adapter_weights(model), config_json(model.config, prevailing_dtype(model.parameters())),
        tokenizer_file=tokenizer_file, extras={ADAPTER_CONFIG: json.dumps(said, indent=2) + "\n"},
        max_shard_bytes=2**62, single=_WEIGHTS,
    )  # fmt: skip


def load_adapter(directory: Path, model: MPT) -> None:
    """Give a model the adapters of a directory, ours or PEFT's. One that a layer has already takes the weights.

    Raises:
        CheckpointError: files missing or damaged, a kind of adapter that is not run here, or layers or shapes that the
            model has not.
    """
    said, tensors = read_json(directory / ADAPTER_CONFIG), _tensors(directory)
    _check_kind(said, directory)
    layers = [name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]
    wanted = {f"{layer}{end}" for layer in layers for end in (_DOWN, _UP)}
    if not layers or wanted != set(tensors):
        raise CheckpointError(
            f"{directory / _WEIGHTS} has tensors other than pairs of {_DOWN[1:]} and {_UP[1:]}; only plain LoRA is run"
        )
    alpha, dropout = float(said.get("lora_alpha") or 8), float(said.get("lora_dropout") or 0)
    for name in layers:
        down, up = tensors[f"{name}{_DOWN}"], tensors[f"{name}{_UP}"]
        layer = _layer(model, name.removeprefix(_PREFIX), down, up, directory)
        rank = len(down)
        scale = alpha / (rank**0.5 if said.get("use_rslora") else rank)
        adapter = LowRankAdapter(down.shape[1], len(up), rank=rank, scale=scale, dropout=dropout)
        held = layer.adapter
        if isinstance(held, LowRankAdapter) and (held.down.shape, held.scale) != (down.shape, scale):
            raise CheckpointError(
                f"{directory} has adapters of rank {rank} and alpha {alpha:g}, and the model others; use the same"
            )
        if not isinstance(held, LowRankAdapter):
            layer.adapter = held = adapter.to(model.device)
        held.load_state_dict({"down": down, "up": up})


def merge_adapter(
    directory: Path, out: Path, *, base: str | Path | None = None, dtype: torch.dtype | None = None
) -> bool:
    """Write base and adapters as one dense checkpoint.

    Args:
        directory: the adapters.
        out: a directory that is not there yet. It appears whole or not at all.
        base: where the frozen weights are; where the adapters say if None.
        dtype: of the result; the base's if None. Sums are made in fp32 and rounded once.

    Returns:
        Whether the base was quantised, and is dequantised in the result: adapters were trained beside the numbers
        that codes stand for, and the sum has no codes.

    Raises:
        CheckpointError: adapters or base cannot be read or do not fit, or ``out`` is there or cannot be written.

    Memory: the base, and the result.
    """
    if out.exists():
        raise CheckpointError(f"{out} is there already; name a directory that is not")
    source = base or read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not source:
        raise CheckpointError(
            f"{directory / ADAPTER_CONFIG} does not say what the adapters stand beside; name the base"
        )
    checkpoint = load_checkpoint(source)
    load_adapter(directory, checkpoint.model)
    trained_in = load_config(directory) if (directory / CONFIG).is_file() else checkpoint.config
    tokenizers = [path / TOKENIZER for path in (directory, checkpoint.directory) if (path / TOKENIZER).is_file()]
    state = _merged(checkpoint.model, dtype or checkpoint.dtype)
    config, tokenizer_file = replace(trained_in, quantization=None), next(iter(tokenizers), None)
    with whole_folder(out) as partial:
        save_checkpoint(partial, state, config, tokenizer_file=tokenizer_file)
    return checkpoint.config.quantization is not None


def _merged(model: MPT, dtype: torch.dtype) -> dict[str, Tensor]:
    """A dense state dict in one dtype."""
    added = dict(adapters(model))
    state: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if name in added or isinstance(layer, QuantLinear):
            held = layer.quant_weight if isinstance(layer, QuantLinear) else None
            weight = dense(held) if held is not None else layer.get_parameter("weight").float()
            state[f"{name}.weight"] = (weight + added[name].delta_OI() if name in added else weight).to(dtype)
    for name, tensor in model.state_dict().items():
        layer = name.rpartition(".")[0]
        is_part = ".adapter." in name or (isinstance(model.get_submodule(layer), QuantLinear) and name[-5:] != ".bias")
        if not is_part and name not in state:
            state[name] = tensor.to(dtype)
    return state


def _tensors(directory: Path) -> dict[str, Tensor]:
    try:
        return load_file(directory / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / _WEIGHTS} cannot be read ({reason(error)}); fetch it again") from error


def _check_kind(said: Mapping[str, Any], directory: Path) -> None:
    if said.get("peft_type") != "LORA":
        raise CheckpointError(f"{directory} holds a {said.get('peft_type')} adapter; only LORA is run here")
    for key, harmless in _WITHOUT_EFFECT.items():
        if key in said and said[key] not in harmless:
            raise CheckpointError(f"{directory} was made with {key} = {said[key]!r}, which is not run here")


def _layer(model: MPT, name: str, down: Tensor, up: Tensor, directory: Path) -> nn.Module:
    layer: nn.Module | None = dict(model.named_modules()).get(name)
    shape = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
    if layer is None or shape != (len(up), down.shape[1]) or up.shape[1] != len(down):
        raise CheckpointError(
            f"{directory} has an adapter for {name} of {len(up)} outputs and {down.shape[1]} inputs, which this base "
            "has not; name the base that it was trained beside"
        )
    return layer
