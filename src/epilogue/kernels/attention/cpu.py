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
    document_start_BT: Tensor | None = None,
) -> Tensor:
    """Attention in O(B*T*H*D) memory beyond its inputs; scores and sums are fp32 for fp32 and bf16 inputs.

    Keys before a plan's edge or a document's start are not read. Gradients are summed over tiles, and over heads that
    share keys, in fp32 (fp64 for fp64 inputs).

    Returns:
        out_BTHD in the dtype of the queries. Differentiable in q, k and v.
    """
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    slopes_H = slopes_H.to(_wide(q_BTHD))
    view = _View(*(None if x is None else x.tolist() for x in (first_key_HN, document_start_BT)))
    return _Attention.apply(q_BHTD, k_BKSD, v_BKSD, slopes_H, scale, view).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _View(NamedTuple):
    """What is visited of the past: a plan's edges by head and tile, documents' starts by sequence and query."""

    edges: Sequence[Sequence[int]] | None
    starts: Sequence[Sequence[int]] | None


class _Part(NamedTuple):
    """One call of the fused kernel: queries ``rows`` of ``heads`` of ``sequences`` against ``keys``."""

    sequences: slice
    heads: slice
    kv_heads: slice
    rows: slice
    keys: slice
    bias_HMN: Tensor
    row_bias_HM: Tensor
    """What the bias leaves out: the same for all keys of a query, so only the log-sum-exp needs it."""

    def places(self) -> tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]:
        """Where in q_BHTD, and where in k_BKSD and v_BKSD."""
        return (self.sequences, self.heads, self.rows), (self.sequences, self.kv_heads, self.keys)

    def bias_BHMN(self) -> Tensor:
        """The bias, repeated over the sequences by a stride of zero."""
        return self.bias_HMN.expand(self.sequences.stop - self.sequences.start, -1, -1, -1)


def _parts(q_BHTD: Tensor, k_BKSD: Tensor, slopes_H: Tensor, view: _View) -> Iterator[_Part]:
    """Every tile's own keys, then its past from the plan's edges and the documents' starts on, if there is any.

    Heads that share keys are taken one per group at a time, so that keys and values are never repeated in memory.
    """
    num_heads, num_queries = q_BHTD.shape[1:3]
    num_kv_heads, num_keys = k_BKSD.shape[1:3]
    group = num_heads // num_kv_heads
    for member in range(group):
        slope_H11 = slopes_H[member::group, None, None]
        for start in range(0, num_queries, TILE_TOKENS):
            rows = slice(start, min(start + TILE_TOKENS, num_queries))
            first = num_keys - num_queries + start
            for sequences in _alike(view, rows, len(q_BHTD)):
                yield _own_part(sequences, slice(member, None, group), rows, first, slope_H11, view)
                for run, oldest in _documents(view, sequences, rows):
                    row_M = torch.arange(run.start - start, run.stop - start)
                    for kv_heads, edge in _runs(view, start // TILE_TOKENS, member, group, num_kv_heads):
                        keys = slice(max(edge, oldest), first)
                        if keys.start < first:
                            heads = slice(member + kv_heads.start * group, member + kv_heads.stop * group, group)
                            slope = slope_H11[kv_heads]
                            past_HMN = (slope * torch.arange(keys.start - first, 0)).expand(-1, len(row_M), -1)
                            yield _Part(sequences, heads, kv_heads, run, keys, past_HMN, slope[..., 0] * -row_M)


def _own_part(sequences: slice, heads: slice, rows: slice, first: int, slope_H11: Tensor, view: _View) -> _Part:
    """A tile's own keys: causal, and within each query's document."""
    row_M = torch.arange(rows.stop - rows.start)
    distance_MN = row_M[:, None] - row_M
    own_HMN = (slope_H11 * -distance_MN).masked_fill(distance_MN < 0, -torch.inf)
    if view.starts is not None:
        start_M = torch.tensor(view.starts[sequences.start][rows]) - first
        own_HMN = own_HMN.masked_fill(row_M < start_M[:, None], -torch.inf)
    keys = slice(first, first + len(row_M))
    return _Part(sequences, heads, slice(None), rows, keys, own_HMN, torch.zeros_like(own_HMN[..., 0]))


def _alike(view: _View, rows: slice, batch: int) -> Iterator[slice]:
    """Neighbouring sequences whose documents lie alike in these rows."""
    if view.starts is None:
        yield slice(0, batch)
        return
    starts = view.starts
    for _, run in groupby(range(batch), key=lambda sequence: starts[sequence][rows]):
        members = list(run)
        yield slice(members[0], members[-1] + 1)


def _documents(view: _View, sequences: slice, rows: slice) -> Iterator[tuple[slice, int]]:
    """The tile's rows, one document's at a time, with its first key; of these one at most begins before the tile."""
    if view.starts is None:
        yield rows, 0
        return
    starts = view.starts[sequences.start]
    for start, run in groupby(range(rows.start, rows.stop), key=starts.__getitem__):
        members = list(run)
        yield slice(members[0], members[-1] + 1), start


def _runs(view: _View, tile: int, member: int, group: int, num_kv_heads: int) -> Iterator[tuple[slice, int]]:
    """Neighbouring heads that look back equally far: fewer and larger calls."""
    if view.edges is None:
        yield slice(0, num_kv_heads), 0
        return
    edges = view.edges
    for edge, run in groupby(range(num_kv_heads), key=lambda kv_head: edges[member + kv_head * group][tile]):
        members = list(run)
        yield slice(members[0], members[-1] + 1), edge


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, slopes_H: Tensor, scale: float, view: _View) -> Tensor:
        out_BHTD = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse_BHT = torch.full(q.shape[:3], -torch.inf, dtype=_wide(q))
        for part in _parts(q, k, slopes_H, view):
            at, keys_at = part.places()
            out, lse = _forward(q[at], k[keys_at], v[keys_at], attn_mask=part.bias_BHMN(), scale=scale)
            out_BHTD[at], lse_BHT[at] = _join(out_BHTD[at], lse_BHT[at], out, lse + part.row_bias_HM)
        ctx.save_for_backward(q, k, v, slopes_H, out_BHTD, lse_BHT)
        ctx.scale, ctx.view = scale, view
        return out_BHTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        q, k, v, slopes_H, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x, dtype=_wide(x)) for x in (q, k, v))
        for part in _parts(q, k, slopes_H, ctx.view):
            at, keys_at = part.places()
            part_dq, part_dk, part_dv = _backward(
                grad_out[at], q[at], k[keys_at], v[keys_at],
                out[at], lse[at] - part.row_bias_HM, 0.0, False, attn_mask=part.bias_BHMN(), scale=ctx.scale,
            )  # fmt: skip
            dq[at] += part_dq
            dk[keys_at] += part_dk
            dv[keys_at] += part_dv
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _join(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax averages over two disjoint sets of keys, as one over both."""
    # Weights from the difference add up to 1 even where huge scores leave the log-sum-exps few decimals.
    weight_a, weight_b = (torch.sigmoid(gap).unsqueeze(-1) for gap in (lse_a - lse_b, lse_b - lse_a))
    return (out_a * weight_a + out_b * weight_b).to(out_a.dtype), torch.logaddexp(lse_a, lse_b)
