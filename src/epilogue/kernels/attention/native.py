"""Attention of many queries in C++ (native/prefill.cpp), without gradients: this file turns tensors into addresses.

What it does and how exact it is: README.md beside this file.
"""

import torch
from torch import Tensor

from epilogue.kernels.attention.tiles import TILE_TOKENS
from epilogue.kernels.extension import native_is_available, native_module
from epilogue.kernels.paged_attention import PageTensors, rotate

FEW_QUERIES = 16
"""With so few of them most lanes of the vectors of queries would be empty."""


def runs_natively(*inputs: Tensor) -> bool:
    """Whether the extension is there and these are fp32 or bf16 tensors of which no gradient is or will be wanted."""
    wants_gradient = any(x.requires_grad for x in inputs)
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
    """Attention in a few MiB a thread beyond its inputs; scores and sums are fp32 for fp32 and bf16 inputs.

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
    places = (_place(k), _place(v), ())
    sizes = (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3])
    out = _call(q, places, sizes, slopes_H, scale, first_key_HN, document_start_BT, instructions)
    return out.to(q_BTHD.dtype)


def reads_pages(q_THD: Tensor, pages: PageTensors) -> bool:
    """Whether ``attention_over_pages`` runs these queries over these pages.

    bf16 queries only over bf16 pages: codes would be fp32 numbers, which take longer to multiply than bf16 ones do.
    """
    is_made_for = q_THD.dtype == torch.float32 or q_THD.dtype == pages.data_PWD.dtype
    is_on_cpu = pages.data_PWD.device.type == "cpu"
    return is_on_cpu and is_made_for and len(q_THD) > FEW_QUERIES and runs_natively(q_THD)


def attention_over_pages(
    q_THD: Tensor,
    keys: PageTensors,
    values: PageTensors,
    page_ids_KP: Tensor,
    slopes_H: Tensor,
    *,
    num_keys: int,
    scale: float,
    first_key_HN: Tensor,
    instructions: str = "",
) -> Tensor:
    """``attention`` of one sequence whose keys and values stay where they are, codes or numbers.

    The same bits as of gathered pages, but for int4: there queries are rotated, as keys are, and not every key back.

    Args:
        q_THD: fp32 or bf16, the last T of ``num_keys`` positions.
        keys: a pool, contiguous.
        values: as the keys.
        page_ids_KP: int64, for every key head its pages in token order; what is before a plan's edge may be -1.
        slopes_H: fp32.
        num_keys: S.
        scale: factor on q.k.
        first_key_HN: a plan, as ``attention`` takes it.
        instructions: names an instruction set, the best one if empty.

    Returns:
        out_THD in the dtype of the queries, without a gradient.
    """
    are_rotated = keys.storage == "int4"
    q, ids_KP = _dense_rows(q_THD.detach())[None], page_ids_KP.contiguous()
    if are_rotated:
        q = rotate(q)
    sizes = (1, q.shape[1], num_keys, q.shape[2], len(ids_KP), q.shape[3])
    places = (keys.addresses(), values.addresses(), (ids_KP.data_ptr(), ids_KP.shape[1]))
    out = _call(q, places, sizes, slopes_H, scale, first_key_HN, None, instructions)[0]
    return (rotate(out) if are_rotated else out).to(q_THD.dtype)


def _call(
    q_BTHD: Tensor,
    places: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    slopes_H: Tensor,
    scale: float,
    first_key_HN: Tensor | None,
    document_start_BT: Tensor | None,
    instructions: str,
) -> Tensor:
    """out_BTHD, fp32; ``places`` are those of keys and of values, or their pools and where their pages are."""
    first_key, document_start = (None if x is None else x.contiguous() for x in (first_key_HN, document_start_BT))
    slopes_H = slopes_H.contiguous()
    out = torch.empty(q_BTHD.shape)
    keys, values, pages = places
    module = native_module()
    assert module is not None
    module.prefill(
        _place(q_BTHD), keys, values, _place(out), pages,
        slopes_H.data_ptr(),
        (0 if first_key is None else first_key.data_ptr(), TILE_TOKENS),
        0 if document_start is None else document_start.data_ptr(),
        sizes, scale, torch.get_num_threads(), instructions,
    )  # fmt: skip
    return out


def _dense_rows(x: Tensor) -> Tensor:
    """In fp32, with a head's numbers one after the other; heads, tokens and sequences may lie anyhow."""
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _place(x: Tensor) -> tuple[int, ...]:
    """Its address, and how far apart sequences, tokens and heads lie."""
    return x.data_ptr(), *x.stride()[:3]
