"""Attention of many queries in C++ (native/prefill.cpp), without gradients: this file turns tensors into addresses.

What it does and how exact it is: README.md beside this file.
"""

import torch
from torch import Tensor

from epilogue.kernels.attention.tiles import TILE_TOKENS
from epilogue.kernels.extension import native_is_available, native_module


def runs_natively(*inputs: Tensor) -> bool:
    """Whether the extension is there and these are fp32 or bf16 tensors of which no gradient is wanted."""
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return not wants_gradient and inputs[0].dtype in (torch.float32, torch.bfloat16) and native_is_available()


def attention_native(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
    document_start_BT: Tensor | None = None,
    instructions: str = "",
) -> Tensor:
    """Attention in about a MiB a thread beyond its inputs; scores and sums are fp32 for fp32 and bf16 inputs.

    A page of keys before a plan's edge or a document's start is not read. What a query gets depends on its own number,
    its keys and where their pages begin, never on the queries beside it or on the number of threads.

    Args:
        instructions: names an instruction set, the best one if empty.

    Returns:
        out_BTHD in the dtype of the queries, without a gradient.

    Raises:
        ValueError: neither fp32 nor bf16, or no such instruction set here.
    """
    if q_BTHD.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"wanted fp32 or bf16 queries, got {q_BTHD.dtype}")
    q, k, v = (_dense_rows(x.detach()) for x in (q_BTHD, k_BSKD, v_BSKD))
    first_key, document_start = (None if x is None else x.contiguous() for x in (first_key_HN, document_start_BT))
    slopes_H = slopes_H.contiguous()
    out = torch.empty(q.shape)
    module = native_module()
    assert module is not None
    module.prefill(
        *(_place(x) for x in (q, k, v, out)),
        slopes_H.data_ptr(),
        (0 if first_key is None else first_key.data_ptr(), TILE_TOKENS),
        0 if document_start is None else document_start.data_ptr(),
        (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3]),
        scale,
        torch.get_num_threads(),
        instructions,
    )
    return out.to(q_BTHD.dtype)


def _dense_rows(x: Tensor) -> Tensor:
    """In fp32, with a head's numbers one after the other; heads, tokens and sequences may lie anyhow."""
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _place(x: Tensor) -> tuple[int, ...]:
    """Its address, and how far apart sequences, tokens and heads lie."""
    return x.data_ptr(), *x.stride()[:3]
