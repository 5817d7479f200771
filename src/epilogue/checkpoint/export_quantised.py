"""A quantised model for other programs: AutoGPTQ's and GPTQModel's two layouts, and a folder for KoboldAI's 4-bit fork.

Whatever is written is read back and compared, bit by bit, before it counts as written.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from epilogue.checkpoint.dtypes import convert
from epilogue.checkpoint.files import SAFETENSORS, read_json
from epilogue.checkpoint.gptq import stored_tensors
from epilogue.checkpoint.load import Checkpoint, load_checkpoint
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.checkpoint.save import config_json, write_directory
from epilogue.errors import CheckpointError
from epilogue.model import MPT, Layout, Quantization, QuantLinear

GPTQFormat = Literal["gptq", "gptq_v2", "kobold"]
_SHARD_BYTES = 5_000_000_000
# KoboldAI's fork reads one file, and the group size from its name.
_ONE_FILE = 2**62
_PARTS = ("codes_OI", "scales_OG", "zeros_OG", "order_I")


def export_gptq(checkpoint: Checkpoint, out: str | Path, *, format: GPTQFormat) -> list[Path]:
    """Write a quantised model in a layout of other programs, read it back, and compare.

    Args:
        checkpoint: quantised; in the dtype it is stored in (``load_checkpoint`` without a dtype).
        out: the folder to make; it must not be there yet.
        format: ``gptq`` or ``gptq_v2`` with a ``quantization_config``, or ``kobold``: one ``4bit-128g.safetensors``
            (by bits and group size) in fp16 with ``gptq_bits``, ``gptq_groupsize`` and ``gptq_version`` 2, the
            tokenizer's files beside it.

    Returns:
        The files written.

    Raises:
        CheckpointError: the model is not quantised, the layout cannot hold it, ``out`` exists or cannot be written, or
            what was read back is not what was written; ``out`` is removed then.

    Memory: the model twice, and once more its largest layer.
    """
    directory, quantization = Path(out), checkpoint.config.quantization
    if quantization is None:
        raise CheckpointError(f"{checkpoint.directory} is not quantised; quantise it first, with `epilogue quantize`")
    if directory.exists():
        raise CheckpointError(f"{directory} exists already; remove it or choose another place")
    layout: Layout = "gptq_v2" if format == "gptq_v2" else "gptq"
    dtype = torch.float16 if format == "kobold" else checkpoint.dtype
    state = _state(checkpoint.model, layout, dtype)
    said = _described(checkpoint.model, quantization, layout)
    config = config_json(replace(checkpoint.config, quantization=said), dtype)
    tokenizer = checkpoint.directory / TOKENIZER
    try:
        write_directory(
            directory,
            state,
            _kobold_config(config) if format == "kobold" else config,
            tokenizer_file=tokenizer if tokenizer.is_file() else None,
            extras=_extras(checkpoint, config, format),
            max_shard_bytes=_ONE_FILE if format == "kobold" else _SHARD_BYTES,
            single=_file_name(config) if format == "kobold" else SAFETENSORS,
        )
        _compare(checkpoint.model, load_checkpoint(directory).model, directory, dtype)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return sorted(path for path in directory.iterdir() if path.is_file())


def _layers(model: MPT) -> dict[str, QuantLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def _described(model: MPT, quantization: Quantization, layout: Layout) -> Quantization:
    """What the layers are, also where their source did not say: readers choose kernels by it."""
    weights = [module.quant_weight for module in _layers(model).values()]
    middle = 2 ** (quantization.bits - 1)
    return replace(
        quantization,
        layout=layout,
        has_act_order=any(weight.order_I is not None for weight in weights),
        is_symmetric=all(bool((weight.zeros_OG == middle).all()) for weight in weights),
    )


def _state(model: MPT, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    layers = _layers(model)
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] not in layers or name.endswith(".bias"):
            state[name] = convert(name, tensor, dtype=dtype, device="cpu")
    for name, module in layers.items():
        tensors = stored_tensors(module.quant_weight, layout)
        state |= {f"{name}.{leaf}": tensor.cpu() for leaf, tensor in tensors.items()}
    return state


def _kobold_config(config: Mapping[str, Any]) -> dict[str, Any]:
    said = config["quantization_config"]
    keys = {"gptq_bits": said["bits"], "gptq_groupsize": said["group_size"], "gptq_version": 2}
    return {name: value for name, value in config.items() if name != "quantization_config"} | keys


def _file_name(config: Mapping[str, Any]) -> str:
    """KoboldAI's fork takes the group size from a 4-bit file's name, and looks for other widths under the plain one."""
    said = config["quantization_config"]
    if said["bits"] != 4:
        return SAFETENSORS
    group = "" if said["group_size"] == -1 else f"-{said['group_size']}g"
    return f"4bit{group}.safetensors"


def _extras(checkpoint: Checkpoint, config: Mapping[str, Any], format: GPTQFormat) -> dict[str, str]:
    """Small files that readers look for: AutoGPTQ's older ones a table of its own, KoboldAI the tokenizer's kind."""
    texts: dict[str, Any] = {"generation_config.json": {"use_cache": True}}
    if format != "kobold":
        texts["quantize_config.json"] = config["quantization_config"]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = checkpoint.directory / name
        if path.is_file():
            texts[name] = read_json(path)
        elif name == "tokenizer_config.json":
            texts[name] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in texts.items()}


def _compare(model: MPT, again: MPT, directory: Path, dtype: torch.dtype) -> None:
    """Raise unless the two are the same model; the dense tensors to the dtype that was written."""
    ours, theirs = model.state_dict(), again.state_dict()
    if ours.keys() != theirs.keys():
        raise CheckpointError(f"{directory} has other tensors than were written; try again, and report it")
    for name, tensor in ours.items():
        is_packed = name.rpartition(".")[2] in _PARTS
        written = tensor.cpu() if is_packed else tensor.cpu().to(dtype)
        if not _same(written, theirs[name]):
            raise CheckpointError(f"{name} of {directory} is not what was written; try again, and check the disk")


def _same(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point():  # scales may have been stored in another dtype of the same values
        return one.shape == other.shape and torch.equal(one.double().nan_to_num(), other.double().nan_to_num())
    return torch.equal(one, other)
