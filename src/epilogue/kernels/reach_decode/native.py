"""Decode of a layer in C++ (native/reach_decode.cpp): this file turns tensors into addresses."""

from typing import Any

import torch
from torch import Tensor

from epilogue.kernels.extension import native_module
from epilogue.kernels.paged_attention import PageTensors
from epilogue.kernels.reach_decode.tables import Decoded, LayerTable, ScoreBounds


def reach_decode_native(
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
    instructions: str = "",
) -> Decoded:
    """Like the op, on the CPU, in fp32; ``instructions`` names an instruction set, the best one if empty.

    Raises:
        IndexError: a page that the new tokens go to is not in the pool; nothing was changed.
        ValueError: this processor has no such instruction set.
    """
    q, k, v = (_dense_rows(x) for x in (q_THD, k_TKD, v_TKD))
    num_tokens, num_heads, head_dim = q_THD.shape
    out_THD = torch.empty(q_THD.shape)
    first_page_H = torch.empty(num_heads, dtype=torch.int64)
    omitted_mass_H = torch.empty(num_heads, dtype=torch.float64)
    slopes_H = slopes_H.contiguous()
    module = native_module()
    assert module is not None
    was_written = module.reach_decode(
        (q.data_ptr(), q.stride(0)),
        (k.data_ptr(), k.stride(0)),
        (v.data_ptr(), v.stride(0)),
        keys.addresses(),
        values.addresses(),
        (table.ids_KP.data_ptr(), table.ids_KP.stride(0)),
        (table.norms_KP.data_ptr(), table.norms_KP.stride(0)),
        slopes_H.data_ptr(),
        () if table.bounds is None else _bounds(table.bounds),
        table.num_tokens,
        (num_tokens, num_heads, k_TKD.shape[1], head_dim),
        scale,
        epsilon,
        (out_THD.data_ptr(), first_page_H.data_ptr(), omitted_mass_H.data_ptr()),
        torch.get_num_threads(),
        instructions,
    )
    if not was_written:
        raise IndexError("the new tokens' pages are not all in the pool")
    return Decoded(out_THD.to(q_THD.dtype), first_page_H, omitted_mass_H)


def _dense_rows(x_THD: Tensor) -> Tensor:
    """In fp32, with a token's heads one after the other; tokens may be further apart."""
    x_THD = x_THD.float()
    return x_THD if x_THD.stride()[1:] == (x_THD.shape[2], 1) else x_THD.contiguous()


def _bounds(bounds: ScoreBounds) -> tuple[Any, ...]:
    parts = (bounds.root_HDD, bounds.offset_HD, bounds.error_H)
    assert all(part.is_contiguous() for part in parts)
    return *(part.data_ptr() for part in parts), bounds.clip, bounds.scores_HP.data_ptr(), bounds.scores_HP.stride(0)
