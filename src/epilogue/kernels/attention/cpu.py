"""Causal ALiBi attention on the CPU: query tiles against fused flash attention, no [T, S] matrix at any length.

Every query tile is two calls of PyTorch's fused CPU kernel: all older keys, where the bias is one fp32 column
slope*(s - tile start) because its row part cancels in the softmax, and the tile's own keys, where it is causal and
exact. The two are joined by their log-sum-exps, the past's with its row part put back. The backward pass gives the
kernel's own backward the joint log-sum-exp, by which either part's gradients come out whole. Derivation: README.md
beside this file.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from epilogue.kernels.attention.tiles import TILE_TOKENS

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_cpu(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
) -> Tensor:
    """Attention in O(B*T*H*D) memory beyond its inputs; scores and sums are fp32 for fp32 and bf16 inputs.

    Keys before a plan's edge are not read. Gradients are summed over tiles, and over heads that share keys, in fp32 (fp64 for fp64 inputs).

    Returns:
        out_BTHD in the dtype of the queries. Differentiable in q, k and v.
    """
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    slopes_H = slopes_H.to(_wide(q_BTHD))
    edges = None if first_key_HN is None else first_key_HN.tolist()
    return _Attention.apply(q_BHTD, k_BKSD, v_BKSD, slopes_H, scale, edges).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Part(NamedTuple):
    """One call of the fused kernel: queries ``rows`` of ``heads`` against ``keys``."""

    heads: slice
    kv_heads: slice
    rows: slice
    keys: slice
    bias_BHMN: Tensor
    row_bias_HM: Tensor
    """What the bias leaves out: the same for all keys of a query, so only the log-sum-exp needs it."""


Edges = Sequence[Sequence[int]] | None


def _parts(q_BHTD: Tensor, k_BKSD: Tensor, slopes_H: Tensor, edges: Edges) -> Iterator[_Part]:
    """Every tile's own keys, then its past from the plan's edges on, if there is any.

    Heads that share keys are taken one per group at a time, so that keys and values are never repeated in memory.
    """
    batch, num_heads, num_queries, _ = q_BHTD.shape
    num_kv_heads, num_keys = k_BKSD.shape[1:3]
    group = num_heads // num_kv_heads
    for member in range(group):
        heads, kv_heads = slice(member, None, group), slice(0, num_kv_heads)
        slope_H11 = slopes_H[heads, None, None]
        for tile, start in enumerate(range(0, num_queries, TILE_TOKENS)):
            size = min(TILE_TOKENS, num_queries - start)
            first = num_keys - num_queries + start
            rows, row_M = slice(start, start + size), torch.arange(size)
            distance_MN = row_M[:, None] - row_M
            own_HMN = (slope_H11 * -distance_MN).masked_fill(distance_MN < 0, -torch.inf)
            own_BHMN = own_HMN.expand(batch, -1, -1, -1)
            yield _Part(heads, kv_heads, rows, slice(first, first + size), own_BHMN, torch.zeros_like(own_HMN[..., 0]))
            for kv_run, edge in _runs(edges, tile, member, group, num_kv_heads):
                if edge < first:
                    run = slice(member + kv_run.start * group, member + kv_run.stop * group, group)
                    slope = slope_H11[kv_run]
                    past_BHMN = (slope * torch.arange(edge - first, 0)).expand(batch, -1, size, -1)
                    yield _Part(run, kv_run, rows, slice(edge, first), past_BHMN, slope[..., 0] * -row_M)


def _runs(edges: Edges, tile: int, member: int, group: int, num_kv_heads: int) -> Iterator[tuple[slice, int]]:
    """Neighbouring heads that look back equally far: fewer and larger calls."""
    if edges is None:
        yield slice(0, num_kv_heads), 0
        return
    for edge, run in groupby(range(num_kv_heads), key=lambda kv_head: edges[member + kv_head * group][tile]):
        members = list(run)
        yield slice(members[0], members[-1] + 1), edge


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, slopes_H: Tensor, scale: float, edges: Edges) -> Tensor:
        out_BHTD = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse_BHT = torch.full(q.shape[:3], -torch.inf, dtype=_wide(q))
        for heads, kv_heads, rows, keys, bias, row_bias in _parts(q, k, slopes_H, edges):
            at = (slice(None), heads, rows)
            out, lse = _forward(q[at], k[:, kv_heads, keys], v[:, kv_heads, keys], attn_mask=bias, scale=scale)
            out_BHTD[at], lse_BHT[at] = _join(out_BHTD[at], lse_BHT[at], out, lse + row_bias)
        ctx.save_for_backward(q, k, v, slopes_H, out_BHTD, lse_BHT)
        ctx.scale, ctx.edges = scale, edges
        return out_BHTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        q, k, v, slopes_H, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x, dtype=_wide(x)) for x in (q, k, v))
        for heads, kv_heads, rows, keys, bias, row_bias in _parts(q, k, slopes_H, ctx.edges):
            at = (slice(None), heads, rows)
            part_dq, part_dk, part_dv = _backward(
                grad_out[at], q[at], k[:, kv_heads, keys], v[:, kv_heads, keys],
                out[at], lse[at] - row_bias, 0.0, False, attn_mask=bias, scale=ctx.scale,
            )  # fmt: skip
            dq[at] += part_dq
            dk[:, kv_heads, keys] += part_dk
            dv[:, kv_heads, keys] += part_dv
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _join(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax averages over two disjoint sets of keys, as one over both."""
    # Weights from the difference add up to 1 even where huge scores leave the log-sum-exps few decimals.
    weight_a, weight_b = (torch.sigmoid(gap).unsqueeze(-1) for gap in (lse_a - lse_b, lse_b - lse_a))
    return (out_a * weight_a + out_b * weight_b).to(out_a.dtype), torch.logaddexp(lse_a, lse_b)
