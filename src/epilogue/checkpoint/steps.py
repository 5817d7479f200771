"""The weights in a step of a training run: safetensors files in which a tensor may lie in parts, one a process.

PyTorch writes them (torch.distributed.checkpoint's Hugging Face storage); where a part begins stands in a file's
header. No torch.distributed is needed to read them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from epilogue.errors import CheckpointError

STEP_FILE = "step.json"
"""Makes a folder a step, says which one, and lists its files."""
OPTIMIZER_PREFIX = "optimizer."
"""Begins the names of tensors that are an optimizer's; all others are weights."""
_OFFSETS = "DCP_SHARDING_INFO"


def step_files(directory: Path, about: Mapping[str, Any]) -> list[Path]:
    """The files of tensors that ``about``, the content of a ``STEP_FILE``, lists.

    Raises:
        CheckpointError: one is missing or has another length than it was written with.
    """
    sizes = about.get("files")
    if about.get("format_version") != 1 or not isinstance(sizes, dict):
        raise CheckpointError(f"{directory / STEP_FILE} is not of version 1; go on with the program that wrote it")
    for name, num_bytes in sizes.items():
        path = directory / Path(name).name
        found = path.stat().st_size if path.is_file() else None
        if found != num_bytes:
            raise CheckpointError(
                f"{path} is damaged ({'missing' if found is None else f'{found} bytes'}, {num_bytes} were written); "
                f"remove {directory} to go on from an older step"
            )
    return [directory / Path(name).name for name in sorted(sizes)]


def read_step_weights(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the weights in a step's files, whole and on the CPU.

    Raises:
        CheckpointError: a file is damaged, or parts of a tensor are missing.

    Memory: one tensor, if it lies in parts; else pages of files that the system may drop.
    """
    path = files[0] if files else None
    try:
        with ExitStack() as stack:
            parts: dict[str, list[_Part]] = {}
            for path in files:
                file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                offsets = json.loads((file.metadata() or {}).get(_OFFSETS, "{}"))
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if not name.startswith(OPTIMIZER_PREFIX):
                        shape = file.get_slice(name).get_shape()
                        begin = offsets.get(name, {}).get("saved_offsets", [0] * len(shape))
                        parts.setdefault(name, []).append(_Part(file, begin, shape))
            for name, several in parts.items():
                yield name, _joined(name, several)
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another step") from error


@dataclass(frozen=True)
class _Part:
    file: Any
    begin: list[int]
    shape: list[int]


def _joined(name: str, parts: list[_Part]) -> Tensor:
    if len(parts) == 1 and not any(parts[0].begin):
        tensor: Tensor = parts[0].file.get_tensor(name)
        return tensor
    axes = range(len(parts[0].shape))
    shape = [max(part.begin[axis] + part.shape[axis] for part in parts) for axis in axes]
    if prod(shape) != sum(prod(part.shape) for part in parts):
        raise ValueError(f"parts of {name} are missing")
    whole: Tensor | None = None
    for part in parts:
        tensor = part.file.get_tensor(name)
        whole = torch.empty(shape, dtype=tensor.dtype) if whole is None else whole
        whole[tuple(slice(part.begin[axis], part.begin[axis] + part.shape[axis]) for axis in axes)] = tensor
    assert whole is not None
    return whole
