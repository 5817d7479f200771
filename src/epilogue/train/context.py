"""Context parallelism with ALiBi: each process holds a part of every sequence, and in attention a part of the heads.

Attention is over whole sequences, so before it the processes of a context group swap: a part of the tokens with all
heads for all tokens with a part of the heads, and back behind it (DeepSpeed-Ulysses, arXiv 2309.14509). Any kernel is
exact then, as long as the slopes go with their heads. Clamp and QK norms come before, where all heads of a token are
at hand.

ALiBi makes heads unequal: a steep one looks back some hundred tokens, the flattest over the whole book. So the heads
are dealt out by how much they see, not in their order.
"""

from dataclasses import dataclass
from math import inf, lcm
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from epilogue.model import MPT, Attention
from epilogue.model.exchange import HeadExchange
from epilogue.train.mesh import Mesh

# A key whose bias is below this many nats counts for nothing in the balance; what is computed does not depend on it.
_SEEN_NATS = 64.0


@dataclass(frozen=True)
class HeadShares:
    """Which heads every process of a context group computes, each as many."""

    queries: list[list[int]]
    keys: list[list[int]]
    """Heads of keys and values; one may be with several processes, and twice with one."""


def share_heads(slopes: list[float], *, kv_n_heads: int, num_processes: int, num_tokens: int) -> HeadShares:
    """Deal heads out so that all processes have about as many (query, key) pairs to visit.

    Heads that share keys stay together as far as the numbers allow: keys are repeated for lcm(K, P) groups of
    neighbouring heads, and groups are dealt out, the heaviest first, to whoever has least and has room.

    Args:
        slopes: one a head.
        kv_n_heads: heads of keys and values, K.
        num_processes: P, a divisor of the number of heads.
        num_tokens: of a sequence.
    """
    num_groups = lcm(kv_n_heads, num_processes)
    group, repeats = len(slopes) // num_groups, num_groups // kv_n_heads
    costs = [sum(_pairs(m, num_tokens) for m in slopes[i * group : (i + 1) * group]) for i in range(num_groups)]
    dealt: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0.0] * num_processes
    for i in sorted(range(num_groups), key=lambda i: -costs[i]):
        has_room = [p for p in range(num_processes) if len(dealt[p]) < num_groups // num_processes]
        least = min(has_room, key=lambda p: loads[p])
        dealt[least].append(i)
        loads[least] += costs[i]
    return HeadShares(
        queries=[[i * group + j for i in sorted(groups) for j in range(group)] for groups in dealt],
        keys=[[i // repeats for i in sorted(groups)] for groups in dealt],
    )


def split_context(model: MPT, mesh: Mesh, *, num_tokens: int) -> None:
    """Have every attention layer of a model swap tokens for heads with the other processes of the context group.

    From then on ``model.loss`` takes this process's part of the tokens, and all of the sequences' document starts.
    """
    if mesh.context_group is None:
        return
    shares = share_heads(
        model.slopes_H.tolist(),
        kv_n_heads=model.config.kv_n_heads,
        num_processes=mesh.context,
        num_tokens=num_tokens,
    )
    for module in model.modules():
        if isinstance(module, Attention):
            module.exchange = Exchange(shares, part=mesh.part, group=mesh.context_group)


class Exchange(HeadExchange):
    """Between the processes of a context group."""

    def __init__(self, shares: HeadShares, *, part: int, group: dist.ProcessGroup) -> None:
        self.heads = shares.queries[part]
        self._sizes = [len(shares.queries[part]), len(shares.keys[part]), len(shares.keys[part])]
        self._group = group
        num_heads, num_kv_heads = sum(map(len, shares.queries)), max(map(max, shares.keys)) + 1
        self._sent = [
            head
            for queries, keys in zip(shares.queries, shares.keys, strict=True)
            for head in (*queries, *(num_heads + k for k in keys), *(num_heads + num_kv_heads + k for k in keys))
        ]
        order = [head for queries in shares.queries for head in queries]
        self._back = sorted(range(num_heads), key=order.__getitem__)

    def to_heads(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """This process's heads of all tokens, of all heads of its tokens."""
        joined_BTHD = torch.cat([q_BTHD, k_BTKD, v_BTKD], dim=2)
        sent = torch.tensor(self._sent, device=joined_BTHD.device)
        parted_HBTD = joined_BTHD.permute(2, 0, 1, 3).index_select(0, sent)
        swapped = self._swap(parted_HBTD)  # [part of the tokens, head, B, T of a part, D]
        whole_HBTD = swapped.permute(1, 2, 0, 3, 4).flatten(2, 3)
        q, k, v = whole_HBTD.permute(1, 2, 0, 3).split(self._sizes, dim=2)
        return q, k, v

    def to_tokens(self, out_BTHD: Tensor) -> Tensor:
        """All heads of this process's tokens, of its heads of all tokens."""
        parts = dist.get_world_size(self._group)
        parted = out_BTHD.unflatten(1, (parts, -1)).permute(1, 3, 0, 2, 4)
        swapped_HBTD = self._swap(parted.flatten(0, 1)).flatten(0, 1)
        back = torch.tensor(self._back, device=out_BTHD.device)
        tokens_HBTD: Tensor = swapped_HBTD.index_select(0, back)
        return tokens_HBTD.permute(1, 2, 0, 3)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _swap(self, x: Tensor) -> Tensor:
        """Send each process its equal share of the first axis; what came stands by the process it came from."""
        swapped: Tensor = _Swap.apply(x.unflatten(0, (dist.get_world_size(self._group), -1)), self._group)  # type: ignore[no-untyped-call]
        return swapped


class _Swap(torch.autograd.Function):
    """An all-to-all of equal parts, which is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradients[0], ctx.group), None


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


def _pairs(slope: float, num_tokens: int) -> float:
    """(query, key) pairs that a head of this slope sees in a sequence, about."""
    window = min(float(num_tokens), _SEEN_NATS / slope if slope else inf)
    return window * (num_tokens - window / 2)
