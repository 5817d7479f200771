"""Decode of one layer of one sequence: what it means, what it checks, and which backend runs it."""

from typing import Literal

import torch
from torch import Tensor

from epilogue.kernels.extension import native_is_available
from epilogue.kernels.paged_attention import MOST_QUERIES, PAGE_TOKENS, PageTensors
from epilogue.kernels.reach_decode.native import reach_decode_native
from epilogue.kernels.reach_decode.reference import reach_decode_reference
from epilogue.kernels.reach_decode.tables import Decoded, LayerTable

Backend = Literal["reference", "native"]


def reach_decode(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    keys: PageTensors,
    values: PageTensors,
    table: LayerTable,
    slopes_H: Tensor,
    *,
    scale: float,
    epsilon: float,
    backend: Backend | None = None,
) -> Decoded:
    """Store T new tokens' keys and values, plan how far their queries must look back, and attend.

    The keys and values go into the table's pages as ``write_pages`` puts them there, and the table's norms and scores
    keep covering them; nothing of the older tokens is read for that. A head then leaves out the longest prefix of
    pages that provably holds at most ``epsilon`` of any new query's probability (docs/numerics.md), and those that
    were evicted, and the queries attend to the rest causally, with ALiBi.

    Args:
        q_THD: queries, 1 to MOST_QUERIES; fp32 or bf16 (fp64: ``reference``).
        k_TKD: their keys, of the same dtype; H is a multiple of K.
        v_TKD: their values.
        keys: the pool of keys, any storage.
        values: the pool of values, any storage, as many pages.
        table: of this layer; its norms and scores are changed in place.
        slopes_H: fp32; zeros for a model without ALiBi.
        scale: factor on q.k.
        epsilon: 0 visits everything that is there.
        backend: chosen by ``runs_natively`` if None.

    Raises:
        ValueError: shapes or dtypes disagree. Of the pages that are read, what the table says is taken on trust.
        IndexError: a page that the new tokens go to is not in the pool; nothing was changed.
    """
    _check(q_THD, k_TKD, v_TKD, keys, values, table, slopes_H)
    native = backend == "native" or (backend is None and runs_natively(q_THD, keys))
    run = reach_decode_native if native else reach_decode_reference
    return run(q_THD, k_TKD, v_TKD, keys, values, table, slopes_H, scale=scale, epsilon=epsilon)


def runs_natively(q: Tensor, pages: PageTensors) -> bool:
    """Whether queries of this dtype go through the extension, on these pages' device."""
    fits = q.dtype in (torch.float32, torch.bfloat16) and q.device.type == "cpu" == pages.data_PWD.device.type
    return fits and native_is_available()


def _check(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    keys: PageTensors,
    values: PageTensors,
    table: LayerTable,
    slopes_H: Tensor,
) -> None:
    if q_THD.ndim != 3 or not 1 <= q_THD.shape[0] <= MOST_QUERIES:
        raise ValueError(f"wanted q [1..{MOST_QUERIES}, H, D], got {tuple(q_THD.shape)}")
    num_tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads, columns = table.ids_KP.shape
    if k_TKD.shape != (num_tokens, num_kv_heads, head_dim) or v_TKD.shape != k_TKD.shape or num_heads % num_kv_heads:
        raise ValueError(
            f"wanted k and v [{num_tokens}, {num_kv_heads}, {head_dim}] for a table of {num_kv_heads} key heads, and a"
            f" multiple of as many query heads, got {tuple(k_TKD.shape)}, {tuple(v_TKD.shape)} and {num_heads}"
        )
    if not q_THD.dtype == k_TKD.dtype == v_TKD.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q_THD.dtype}, {k_TKD.dtype} and {v_TKD.dtype}")
    if keys.data_PWD.shape[:2] != values.data_PWD.shape[:2] or {keys.head_dim, values.head_dim} != {head_dim}:
        raise ValueError(
            f"wanted pools of as many pages and of width {head_dim}, got {keys.head_dim}, {values.head_dim}"
        )
    if columns * PAGE_TOKENS < table.num_tokens + num_tokens or table.norms_KP.shape[1] < columns:
        raise ValueError(f"{columns} pages do not cover {table.num_tokens + num_tokens} tokens")
    if table.ids_KP.dtype != torch.int64 or slopes_H.shape != (num_heads,) or slopes_H.dtype != torch.float32:
        raise ValueError(
            f"wanted int64 ids and fp32 slopes [{num_heads}], got {table.ids_KP.dtype} and {slopes_H.dtype}"
        )
