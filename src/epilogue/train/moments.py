"""What optimizers keep of each parameter, under the parameters' names, whole or in parts like the parameters."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, zeros
from torch.optim import Optimizer

from epilogue.checkpoint.steps import OPTIMIZER_PREFIX


def moments(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Every tensor that the optimizers keep, by ``optimizer.PARAMETER.KEY``.

    Raises:
        ValueError: a tensor that is neither one number nor split as its parameter is, for a parameter that is split:
            each process would have another, and one of them would be saved for all.
    """
    named: dict[str, Tensor] = {}
    for name, parameter, optimizer, _ in _owned(model, optimizers):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(parameter, DTensor) and not isinstance(value, DTensor) and value.numel() > 1:
                raise ValueError(f"{key} of {name} must be a DTensor as its parameter is, or one number")
            named[f"{OPTIMIZER_PREFIX}{name}.{key}"] = value
    return named


def empty_moments(model: nn.Module, optimizers: Sequence[Optimizer], *, stored: Mapping[str, Any]) -> None:
    """Give optimizers that have done no step the tensors that are stored, to be filled.

    Args:
        model: whose parameters the optimizers own.
        optimizers: what they have kept so far is dropped.
        stored: what is known of each stored tensor, by the names of ``moments``; others are passed over.

    Raises:
        KeyError: a name of a parameter that is not the optimizers'.
    """
    owned = {name: (parameter, optimizer, group) for name, parameter, optimizer, group in _owned(model, optimizers)}
    for optimizer in optimizers:
        optimizer.state.clear()
    for full_name, described in stored.items():
        if full_name.startswith(OPTIMIZER_PREFIX):
            name, _, key = full_name.removeprefix(OPTIMIZER_PREFIX).rpartition(".")
            parameter, optimizer, group = owned[name]
            optimizer.state[parameter][key] = _empty(parameter, described, is_on_device=_counts_on_device(group))


def owners(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Which optimizers there are and which parameters each of their groups has; plain data that tells them apart."""
    names = _names(model)
    return [
        {"kind": type(optimizer).__name__, "groups": [[names[p] for p in g["params"]] for g in optimizer.param_groups]}
        for optimizer in optimizers
    ]


def _owned(
    model: nn.Module, optimizers: Sequence[Optimizer]
) -> Iterator[tuple[str, Tensor, Optimizer, dict[str, Any]]]:
    names = _names(model)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[parameter], parameter, optimizer, group


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _empty(parameter: Tensor, described: TensorStorageMetadata, *, is_on_device: bool) -> Tensor:
    size, dtype = described.size, described.properties.dtype
    if isinstance(parameter, DTensor) and size:
        return zeros(size, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements)
    # Counts of steps stay on the host unless the optimizer's kernel reads them.
    return torch.zeros(size, dtype=dtype, device=parameter.device if size or is_on_device else "cpu")


def _counts_on_device(group: dict[str, Any]) -> bool:
    return bool(group.get("fused") or group.get("capturable"))
