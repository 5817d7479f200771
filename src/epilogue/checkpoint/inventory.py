"""Which tensors a config asks for, and how a set of tensors departs from that."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epilogue.model import MPT, MPTConfig

_MOST_NAMES = 8


def empty_model(config: MPTConfig) -> MPT:
    """The model without memory for its weights (they are on the meta device)."""
    with torch.device("meta"):
        return MPT(config)


def wanted_shapes(config: MPTConfig) -> dict[str, torch.Size]:
    """Name and shape of every weight."""
    return {name: tensor.shape for name, tensor in empty_model(config).state_dict().items()}


@dataclass
class Departures:
    """What is missing, unknown, misshapen or given twice; false if nothing is, in words as a string."""

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def add_misshapen(self, name: str, came: torch.Size, wanted: torch.Size) -> None:
        """Note a tensor of the wrong shape."""
        self.misshapen.append(f"{name} is {list(came)} and should be {list(wanted)}")

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in vars(self).items() if names)


def departures(state: Mapping[str, Tensor], config: MPTConfig) -> Departures:
    """How a state dict departs from what its config asks for."""
    wanted = wanted_shapes(config)
    found = Departures(
        missing=[name for name in wanted if name not in state],
        unknown=[name for name in state if name not in wanted],
    )
    for name, shape in wanted.items():
        if name in state and state[name].shape != shape:
            found.add_misshapen(name, state[name].shape, shape)
    return found


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f", and {rest} more" if rest > 0 else "")
