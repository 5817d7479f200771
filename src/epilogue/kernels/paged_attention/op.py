"""Attention over paged keys and values: what it means, what it checks, and which backend runs it."""

from collections.abc import Callable
from importlib import import_module
from typing import Literal, cast

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.storage import PageTensors

Backend = Literal["reference", "cpu", "split"]
MOST_QUERIES = 16
"""Query positions of one call."""


def paged_attention(
    q_BTHD: Tensor,
    k: PageTensors,
    v: PageTensors,
    page_table_BKP: Tensor,
    num_keys_B: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_page_BH: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Decode: few queries of each sequence against its pages, causal, with ALiBi.

    Query t of sequence b stands at position num_keys_B[b] - T + t, sees the keys up to its own in those pages of its
    head that are live and not before first_page_BH, and pays slopes_H * distance for looking back. A query that sees
    no key gives zeros. Rows past num_keys_B are never used, whatever they hold.

    Args:
        q_BTHD: queries, 1 to MOST_QUERIES positions; fp32 or bf16 (fp64: ``reference``).
        k: the pool of keys; any storage.
        v: the pool of values; any storage, as many pages.
        page_table_BKP: int32; the pages of each sequence and key head in token order, -1 where there is none.
        num_keys_B: int32 or int64; keys of each sequence, the T new ones included.
        slopes_H: fp32; zeros for a model without ALiBi.
        scale: factor on q.k.
        first_page_BH: int32 or int64, the first column of the table that a head visits; None: 0.
        backend: chosen by device and dtype if None.

    Returns:
        out_BTHD in the dtype of the queries; softmax and sums are fp32 (fp64 for fp64 queries).

    Raises:
        ValueError: shapes, dtypes or devices disagree. What the tables hold is not checked.
    """
    _check(q_BTHD, k, v, page_table_BKP, num_keys_B, slopes_H, first_page_BH)
    run = _load(backend or _choose(q_BTHD))
    return run(q_BTHD, k, v, page_table_BKP, num_keys_B, slopes_H, scale=scale, first_page_BH=first_page_BH)


def _load(backend: Backend) -> Callable[..., Tensor]:
    """Loaded when first called: ``split`` needs Triton, which a machine without an accelerator may lack."""
    module = import_module(f"epilogue.kernels.paged_attention.{backend}")
    return cast(Callable[..., Tensor], getattr(module, f"paged_attention_{backend}"))


def _choose(q_BTHD: Tensor) -> Backend:
    if q_BTHD.dtype == torch.float64:
        return "reference"
    return {"cpu": "cpu", "cuda": "split"}.get(q_BTHD.device.type, "reference")  # type: ignore[return-value]


def _check(
    q_BTHD: Tensor,
    k: PageTensors,
    v: PageTensors,
    page_table_BKP: Tensor,
    num_keys_B: Tensor,
    slopes_H: Tensor,
    first_page_BH: Tensor | None,
) -> None:
    if q_BTHD.ndim != 4 or not 1 <= q_BTHD.shape[1] <= MOST_QUERIES:
        raise ValueError(f"wanted q [B, 1..{MOST_QUERIES}, H, D], got {tuple(q_BTHD.shape)}")
    batch, _, num_heads, head_dim = q_BTHD.shape
    if k.data_PWD.shape[:2] != v.data_PWD.shape[:2] or {k.head_dim, v.head_dim} != {head_dim}:
        raise ValueError(
            f"wanted k and v of as many pages and of width {head_dim}, "
            f"got {tuple(k.data_PWD.shape)} ({k.storage}) and {tuple(v.data_PWD.shape)} ({v.storage})"
        )
    if page_table_BKP.ndim != 3 or page_table_BKP.shape[0] != batch or num_heads % page_table_BKP.shape[1]:
        raise ValueError(f"page table {tuple(page_table_BKP.shape)} does not fit q {tuple(q_BTHD.shape)}")
    if page_table_BKP.dtype != torch.int32:
        raise ValueError(f"the page table must be int32, got {page_table_BKP.dtype}")
    wanted_shapes = [(num_keys_B, (batch,)), (first_page_BH, (batch, num_heads))]
    for counts, shape in wanted_shapes:
        if counts is not None and (counts.shape != shape or counts.dtype not in (torch.int32, torch.int64)):
            raise ValueError(f"wanted int32 or int64 {list(shape)}, got {counts.dtype} {tuple(counts.shape)}")
    if slopes_H.shape != (num_heads,) or slopes_H.dtype != torch.float32:
        raise ValueError(f"slopes must be fp32 [{num_heads}], got {slopes_H.dtype} {tuple(slopes_H.shape)}")
    others = [x for x in (k.data_PWD, v.data_PWD, page_table_BKP, num_keys_B, slopes_H, first_page_BH) if x is not None]
    if any(x.device != q_BTHD.device for x in others):
        raise ValueError("queries, pages, tables and slopes must be on one device")
