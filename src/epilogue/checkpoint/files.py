"""The files of a checkpoint directory: JSON objects, and tensors by name, one shard at a time.

Knows file formats and nothing of MPT. A training run's step says so in its ``step.json``. Other weights are looked for
in this order: ``model.safetensors``, its index with
shards, ``pytorch_model.bin``, its index with shards, a quantised file under the names that KoboldAI's 4-bit fork and
AutoGPTQ gave it (``4bit*.safetensors``, ``4bit*.pt``, ``gptq_model-*.safetensors``), one Composer checkpoint ``*.pt``.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from epilogue.checkpoint.gguf import is_gguf, read_gguf_tensors
from epilogue.checkpoint.steps import STEP_FILE, read_step_weights, step_files
from epilogue.errors import CheckpointError

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = f"{SAFETENSORS}.index.json"
TORCH = "pytorch_model.bin"
TORCH_INDEX = f"{TORCH}.index.json"
_QUANTISED = ("4bit*.safetensors", "4bit*.pt", "gptq_model-*.safetensors")

_RECONSTRUCT_ARRAY = np.empty(0).__reduce__()[0]
# Composer keeps random states (arrays) and clocks beside the weights; these make plain values, no code of a file's own.
_HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    timedelta,
    (_RECONSTRUCT_ARRAY, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT_ARRAY, "numpy._core.multiarray._reconstruct"),
]


def reason(error: BaseException) -> str:
    """The first line of an exception's message, to be put in brackets; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is no such file, or it does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; a checkpoint directory has one beside its weights"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({reason(error)}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a JSON object; fetch the file again")
    return content


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weights in a directory or a .gguf, as stored and on the CPU.

    A tensor may be a view of the mapped file: copy what should outlive the step. Every shard is known to be there
    before the first is opened.

    Raises:
        CheckpointError: no weights, a shard missing or damaged, an index that names anything but a file beside it, a
            pickle that holds more than plain data.

    Memory: one shard, and of a safetensors shard one tensor; all of it pages of files that the system may drop.
    """
    if is_gguf(directory):
        yield from read_gguf_tensors(directory)
        return
    if (directory / STEP_FILE).is_file():
        yield from read_step_weights(step_files(directory, read_json(directory / STEP_FILE)))
        return
    for path, weight_map in _shards(directory):
        tensors = _safetensors if path.suffix == ".safetensors" else _torch_tensors
        for name, tensor in tensors(path):
            # Some writers repeat a tied tensor in several shards; the index says which one counts.
            if weight_map.get(name, path.name) == path.name:
                yield name, tensor
            del tensor  # else it would keep its shard while the next one is opened


def _shards(directory: Path) -> list[tuple[Path, dict[str, str]]]:
    """Each weight file with the index's map of tensors to files, empty where there is no index."""
    for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (TORCH, TORCH_INDEX)):
        if (directory / single).is_file():
            return [(directory / single, {})]
        if (directory / index).is_file():
            weight_map = _weight_map(directory / index)
            return [(directory / shard, weight_map) for shard in dict.fromkeys(weight_map.values())]
    if file := quantised_file(directory):
        return [(file, {})]
    composer = sorted(directory.glob("*.pt"))
    if len(composer) > 1:
        names = ", ".join(path.name for path in composer[:8])
        raise CheckpointError(f"{directory} holds several Composer checkpoints ({names}); leave one of them there")
    if composer:
        return [(composer[0], {})]
    raise CheckpointError(
        f"{directory} holds no weights; wanted {SAFETENSORS}, {SAFETENSORS_INDEX} with its shards, {TORCH}, "
        f"{TORCH_INDEX} with its shards, a quantised 4bit*.safetensors or 4bit*.pt, or one Composer checkpoint (*.pt)"
    )


def quantised_file(directory: Path) -> Path | None:
    """The file of quantised weights that only its name tells, if there is one.

    Raises:
        CheckpointError: there are several of a kind.
    """
    for pattern in _QUANTISED:
        if found := sorted(path for path in directory.glob(pattern) if "4bit-old" not in path.name):
            if len(found) > 1:
                names = ", ".join(path.name for path in found[:8])
                raise CheckpointError(f"{directory} holds several quantised files ({names}); leave one of them there")
            return found[0]
    return None


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names; fetch the file again")
    for shard in dict.fromkeys(weight_map.values()):
        if not shard.endswith((".safetensors", ".bin")) or ".." in shard or any(c in shard for c in "/\\:\0"):
            raise CheckpointError(
                f"{index} names the shard {shard!r}, which is not a .safetensors or .bin file beside it; "
                f"do not use this checkpoint unless you trust who made it"
            )
        if not os.path.isfile(index.parent / shard):  # Path.is_file raises on names that are too long
            raise CheckpointError(f"{index} names the shard {shard!r}, which is not there; fetch that file as well")
    return weight_map


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or incomplete ({reason(error)}); fetch the file again")


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a mapping
                yield name, shard.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _torch_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    state = _model_state(_unpickle(path))
    if state is None:
        raise CheckpointError(f"{path} holds no table of tensors; save the model's state dict with torch.save")
    for name in list(state):
        tensor = state.pop(name)
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(tensor).__name__} under {name!r} where tensors were wanted; "
                f"save the model's state dict alone"
            )
        yield name, tensor


def _unpickle(path: Path) -> Any:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        is_mappable = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and is not opened, because a pickle can run code; "
            f"fetch it again or use the checkpoint's safetensors files"
        ) from error
    except Exception as error:  # damage shows as nearly any type: RuntimeError, EOFError, KeyError, ...
        raise _damaged(path, error) from error


def _model_state(content: Any) -> dict[Any, Any] | None:
    """The table of tensors itself: flat, or where Composer keeps it."""
    if isinstance(content, Mapping) and isinstance(content.get("state"), Mapping):
        content = content["state"].get("model")
    return dict(content) if isinstance(content, Mapping) else None
