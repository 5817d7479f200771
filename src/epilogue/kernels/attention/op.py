"""Causal attention with linear biases: what it means, what it checks, and which backend runs it."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from epilogue.kernels.attention.cpu import attention_cpu
from epilogue.kernels.attention.flex import attention_flex
from epilogue.kernels.attention.hopper import attention_hopper, can_attend
from epilogue.kernels.attention.native import FEW_QUERIES, attention_native, runs_natively
from epilogue.kernels.attention.reference import attention_reference
from epilogue.kernels.attention.tiles import TILE_TOKENS

Backend = Literal["reference", "cpu", "native", "flex", "hopper"]
_BACKENDS: dict[Backend, Callable[..., Tensor]] = {
    "reference": attention_reference,
    "cpu": attention_cpu,
    "native": attention_native,
    "flex": attention_flex,
    "hopper": attention_hopper,
}
# Up to this many queries an accelerator does better with two plain products than with a compiled tile kernel.
_FEW_QUERIES = 16


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
    document_start_BT: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Causal attention with ALiBi, exact to the softmax.

    Query t stands at position S - T + t, sees keys 0..S - T + t, and pays slopes_H * distance (in natural-log units)
    for looking back. H heads may share K heads of keys and values (H a multiple of K).

    Args:
        q_BTHD: queries.
        k_BSKD: keys of the same dtype and device; S >= T.
        v_BSKD: values, as the keys.
        slopes_H: fp32; zeros for a model without ALiBi.
        scale: factor on q.k.
        first_key_HN: a plan: for every head and tile of TILE_TOKENS queries the first key to visit, int64, not after
            the tile's first position; older keys count as if they were not there. None visits all.
        document_start_BT: for every query the position of its document's first key, int64, at most the query's own;
            older keys are invisible to it. For sequences packed out of several documents. None: one document.
        backend: chosen by device and shape if None.

    Returns:
        out_BTHD in the dtype of the queries; softmax and sums are fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices disagree.
    """
    _check(q_BTHD, k_BSKD, v_BSKD, slopes_H)
    _check_plan(q_BTHD, first_key_HN)
    _check_documents(q_BTHD, document_start_BT)
    run = _BACKENDS[backend or _choose(q_BTHD, k_BSKD, v_BSKD, document_start_BT)]
    return run(
        q_BTHD, k_BSKD, v_BSKD, slopes_H, scale=scale, first_key_HN=first_key_HN, document_start_BT=document_start_BT
    )


def _choose(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_start_BT: Tensor | None) -> Backend:
    if q_BTHD.device.type == "cpu":
        return "native" if q_BTHD.shape[1] > FEW_QUERIES and runs_natively(q_BTHD, k_BSKD, v_BSKD) else "cpu"
    if q_BTHD.device.type == "cuda" and q_BTHD.shape[1] > _FEW_QUERIES and q_BTHD.dtype != torch.float64:
        return "hopper" if can_attend(q_BTHD, k_BSKD, v_BSKD, document_start_BT) else "flex"
    return "reference"


def _check_plan(q_BTHD: Tensor, first_key_HN: Tensor | None) -> None:
    if first_key_HN is None:
        return
    wanted = (q_BTHD.shape[2], -(-q_BTHD.shape[1] // TILE_TOKENS))
    if first_key_HN.shape != wanted or first_key_HN.device != q_BTHD.device:
        raise ValueError(
            f"the plan must be {list(wanted)} on {q_BTHD.device}, "
            f"got {list(first_key_HN.shape)} on {first_key_HN.device}"
        )


def _check_documents(q_BTHD: Tensor, document_start_BT: Tensor | None) -> None:
    if document_start_BT is None:
        return
    wanted, got = (q_BTHD.shape[:2], torch.int64, q_BTHD.device), document_start_BT
    if (got.shape, got.dtype, got.device) != wanted:
        raise ValueError(
            f"document starts must be int64 {list(wanted[0])} on {q_BTHD.device}, "
            f"got {got.dtype} {list(got.shape)} on {got.device}"
        )


def _check(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, slopes_H: Tensor) -> None:
    if q_BTHD.ndim != 4 or k_BSKD.ndim != 4 or k_BSKD.shape != v_BSKD.shape:
        raise ValueError(
            f"wanted q [B, T, H, D] and k, v [B, S, K, D], got {q_BTHD.shape}, {k_BSKD.shape}, {v_BSKD.shape}"
        )
    batch, num_queries, num_heads, head_dim = q_BTHD.shape
    if (k_BSKD.shape[0], k_BSKD.shape[3]) != (batch, head_dim) or num_heads % k_BSKD.shape[2]:
        raise ValueError(f"k {tuple(k_BSKD.shape)} does not fit q {tuple(q_BTHD.shape)}")
    if k_BSKD.shape[1] < num_queries:
        raise ValueError(f"{num_queries} queries need at least as many keys, got {k_BSKD.shape[1]}")
    if slopes_H.shape != (num_heads,) or slopes_H.dtype != torch.float32:
        raise ValueError(f"slopes must be fp32 [{num_heads}], got {slopes_H.dtype} {tuple(slopes_H.shape)}")
    if len({x.dtype for x in (q_BTHD, k_BSKD, v_BSKD)}) > 1:
        raise ValueError(f"q, k, v must share a dtype, got {q_BTHD.dtype}, {k_BSKD.dtype}, {v_BSKD.dtype}")
    if len({x.device for x in (q_BTHD, k_BSKD, v_BSKD, slopes_H)}) > 1:
        raise ValueError("q, k, v and slopes must be on one device")
