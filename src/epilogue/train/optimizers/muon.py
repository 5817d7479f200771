"""Muon for matrices that lie in parts over several processes."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


class Muon(torch.optim.Muon):
    """``torch.optim.Muon``, also for DTensors that are split by rows over the last axis of their mesh.

    To make a matrix orthogonal takes all of it. So matrices are put together, each in another process, made
    orthogonal there and sent back in parts: the arithmetic is done once among the processes that share the weights,
    and a matrix crosses the network twice, in the bf16 that it is done in. What DTensor would do by itself sends
    each matrix some fifteen times. Momentum stays in parts.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; gradients are those of the whole batch."""
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # type: ignore[no-untyped-call]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            # The largest first, so that matrices that are made orthogonal at a time are alike.
            parameters = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: -p.numel())
            updates = [self._momentum(p, group) for p in parameters]
            for parameter, update in zip(parameters, _orthogonal(updates, group), strict=True):
                local = parameter.to_local()
                local.mul_(1 - group["lr"] * group["weight_decay"])
                local.add_(update, alpha=-_adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape))
        return loss

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> DTensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        assert isinstance(update, DTensor)
        assert update.placements[-1] == Shard(0)
        return update


def _orthogonal(updates: list[DTensor], group: dict[str, Any]) -> Iterator[Tensor]:
    """This process's rows of every update made orthogonal, in order."""
    if not updates:
        return
    processes = updates[0].device_mesh.get_group(updates[0].device_mesh.ndim - 1)
    number, me = dist.get_world_size(processes), dist.get_rank(processes)
    for first in range(0, len(updates), number):
        several = updates[first : first + number]
        rows = _rows(several[me].shape[0], number) if me < len(several) else []
        parts = [update.to_local().bfloat16() for update in several]
        wholes = _exchange(parts, [(n, several[me].shape[1]) for n in rows], processes, parts[0].device)
        if rows:
            made = _zeropower_via_newtonschulz(
                torch.cat(wholes), group["ns_coefficients"], group["ns_steps"], group["eps"]
            )
            wholes = list(made.split(rows))
        yield from _exchange(wholes, [tuple(part.shape) for part in parts], processes, parts[0].device)


def _rows(num_rows: int, number: int) -> list[int]:
    """Of how many rows each process's part is (as ``torch.chunk`` divides)."""
    chunk = -(-num_rows // number)
    return [max(0, min(chunk, num_rows - i * chunk)) for i in range(number)]


def _exchange(
    sent: list[Tensor], shapes: list[tuple[int, ...]], processes: dist.ProcessGroup, device: torch.device
) -> list[Tensor]:
    """Send the i-th bf16 tensor to the i-th process, and get from the i-th one of the i-th shape; others nothing."""
    none = [0] * dist.get_world_size(processes)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.cat([torch.empty(0, dtype=torch.bfloat16, device=device), *(x.flatten() for x in sent)])
    got = flat.new_empty(sum(sizes))
    dist.all_to_all_single(
        got,
        flat,
        output_split_sizes=(sizes + none)[: len(none)],
        input_split_sizes=([x.numel() for x in sent] + none)[: len(none)],
        group=processes,
    )
    return [x.view(shape) for x, shape in zip(got.split(sizes), shapes, strict=True)] if sizes else []
