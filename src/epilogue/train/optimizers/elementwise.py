"""What Lion and AdamW have in common: every weight by itself, moments in 32 or 8 bits, fp32 or bf16 weights.

Parameters may be DTensors: each process moves what it holds of them, and its moments are DTensors laid out alike, so a
distributed checkpoint knows what they are.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from epilogue.train.optimizers.eight_bits import Kind, from_eight_bits, to_eight_bits
from epilogue.train.optimizers.rounding import join, round_at_random, split

NarrowWeights = Literal["residual", "stochastic"]
"""How bf16 weights take small steps: by an int16 kept beside each (exactly as in fp32), or by random rounding."""
_LOWER = "lower_half"


class Elementwise(Optimizer):
    """An optimizer that subclasses tell how one tensor moves.

    Moments of vectors are never in 8 bits: there is little to save. State is saved and loaded bit for bit.

    Args:
        params: parameters or groups of them, fp32 or bf16.
        lr: learning rate.
        weight_decay: decoupled: a step takes lr * weight_decay of each weight.
        state_bits: 32, or 8 for moments of matrices.
        narrow_weights: what bf16 weights do.
        seed: of random rounding; the numbers depend on it and on the step alone.
        defaults: of the subclass, for groups that do not say.

    Raises:
        ValueError: parameters of another dtype.
    """

    moments: ClassVar[Mapping[str, Kind]]
    """Names and kinds of what is kept for a weight."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float,
        state_bits: Literal[32, 8] = 32,
        narrow_weights: NarrowWeights = "residual",
        seed: int = 0,
        **defaults: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **defaults})
        self._state_bits, self._narrow_weights, self._seed = state_bits, narrow_weights, seed
        for parameter in chain.from_iterable(group["params"] for group in self.param_groups):
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"parameters must be float32 or bfloat16, got {parameter.dtype}")

    @abstractmethod
    def move(
        self, weight: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        """Change a weight and its moments in place, all in fp32. ``step`` counts from 1."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Raises:
            ValueError: a closure, which would make steps that cannot be left out.
        """
        if closure is not None:
            raise ValueError("this optimizer takes no closure; compute gradients first")
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group, generators)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, but codes and fp32 scales keep their dtypes, also beside bf16 weights."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, own, strict=True):
            entry = state_dict["state"].get(index, {})
            for name, value in entry.items():
                device = "cpu" if name == "step" else parameter.device
                self.state[parameter][name] = value.to(device, copy=True)

    def _step_one(self, parameter: Tensor, group: dict[str, Any], generators: dict[torch.device, Any]) -> None:
        state = self.state[parameter]
        state.setdefault("step", torch.zeros(()))
        state["step"] += 1
        step, held = int(state["step"]), _local(parameter)
        weight = self._widened(parameter, state)
        moments = {name: self._moment(parameter, state, name) for name in self.moments}
        assert parameter.grad is not None
        self.move(weight, _local(parameter.grad).float(), moments, step, group)
        for name, value in moments.items():
            self._keep_moment(parameter, state, name, value)
        if held.dtype == torch.bfloat16 and self._narrow_weights == "residual":
            narrow, lower = split(weight)
            held.copy_(narrow)
            state[_LOWER] = _laid_out_as(parameter, lower)
        elif held.dtype == torch.bfloat16:
            if held.device not in generators:
                generators[held.device] = torch.Generator(held.device).manual_seed(self._seed << 32 | step)
            held.copy_(round_at_random(weight, generators[held.device]))
            state.pop(_LOWER, None)

    def _widened(self, parameter: Tensor, state: dict[str, Any]) -> Tensor:
        """The weight in fp32: itself, if it is that."""
        held = _local(parameter)
        if held.dtype == torch.bfloat16 and _LOWER in state:
            return join(held, _local(state[_LOWER]))
        return held.float()

    def _moment(self, parameter: Tensor, state: dict[str, Any], name: str) -> Tensor:
        if name not in state:
            return torch.zeros_like(_local(parameter), dtype=torch.float32)
        if f"{name}_scales" in state:
            return from_eight_bits(_local(state[name]), _local(state[f"{name}_scales"]), self.moments[name])
        return _local(state[name])

    def _keep_moment(self, parameter: Tensor, state: dict[str, Any], name: str, value: Tensor) -> None:
        if self._state_bits == 8 and parameter.ndim >= 2:
            codes, scales = to_eight_bits(value, self.moments[name])
            state[name], state[f"{name}_scales"] = (_laid_out_as(parameter, x) for x in (codes, scales))
        elif state.pop(f"{name}_scales", None) is not None or name not in state:
            state[name] = _laid_out_as(parameter, value)


def _local(x: Tensor) -> Tensor:
    """What this process holds."""
    return x.to_local() if isinstance(x, DTensor) else x


def _laid_out_as(parameter: Tensor, local: Tensor) -> Tensor:
    """This process's share of a tensor with the parameter's rows, as a tensor of the parameter's kind."""
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size((*parameter.shape[: local.ndim - 1], local.shape[-1])) if local.ndim > 1 else parameter.shape
    stride = tuple(torch.empty(shape, device="meta").stride())
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
