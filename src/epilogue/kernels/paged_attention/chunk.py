"""A chunk of a text on its pages: all that was read before it, laid out for attention.

On a GPU one Triton launch a layer, in which a number is in fp32 only between its code and its place. Elsewhere, for
int4 and for fp64 PyTorch's operators, the slow twin.
"""

from importlib import import_module

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.pages import gather_pages
from epilogue.kernels.paged_attention.storage import PageTensors

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_pages(
    pools: tuple[PageTensors, PageTensors], page_ids_KP: Tensor, *, num_tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values of the listed pages, as attention takes them.

    A code is multiplied with its scale in fp32 (fp64 for that dtype) and rounded once. The result is all the memory
    that a GPU needs for it.

    Args:
        pools: of keys and of values.
        page_ids_KP: int64, for every head its pages in token order. Tokens of a page of -1 hold anything.
        num_tokens: of each head; the last page may have more.
        dtype: fp32, bf16, fp16 or fp64.

    Returns:
        k_TKD and v_TKD, of which each head's tokens lie one behind the other.
    """
    if _has_kernel(pools, dtype):
        return _read_by_kernel(pools, page_ids_KP, num_tokens, dtype)
    k_TKD, v_TKD = (_read_by_operators(pages, page_ids_KP, num_tokens, dtype) for pages in pools)
    return k_TKD, v_TKD


def _has_kernel(pools: tuple[PageTensors, PageTensors], dtype: torch.dtype) -> bool:
    return dtype in _DTYPES and all(p.data_PWD.device.type == "cuda" and p.storage != "int4" for p in pools)


def _read_by_operators(pages: PageTensors, page_ids_KP: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
    # Codes become numbers in fp32 at least; only what is stored as bf16 may stay so.
    stays = dtype in (torch.float64, pages.data_PWD.dtype)
    x_KSD = gather_pages(pages, page_ids_KP.clamp(min=0), dtype=dtype if stays else torch.float32)
    return x_KSD[:, :num_tokens].transpose(0, 1).to(dtype)


def _read_by_kernel(
    pools: tuple[PageTensors, PageTensors], page_ids_KP: Tensor, num_tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # Triton comes in with the first call: a machine without an accelerator may lack it.
    kernel = import_module("epilogue.kernels.paged_attention.chunk_kernels").read_pages_kernel
    page_ids_KP, head_dim = _rows_in_a_piece(page_ids_KP), pools[0].head_dim
    num_heads, num_columns = page_ids_KP.shape
    k_KTD, v_KTD = (page_ids_KP.new_empty((num_heads, num_tokens, head_dim), dtype=dtype) for _ in pools)
    kernel[(num_columns, num_heads, 2)](
        *_data_and_scale(pools), k_KTD, v_KTD, page_ids_KP, page_ids_KP.stride(0), num_tokens,
        **_switches(pools), num_warps=8,
    )  # fmt: skip
    return k_KTD.transpose(0, 1), v_KTD.transpose(0, 1)


def _rows_in_a_piece(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _data_and_scale(pools: tuple[PageTensors, PageTensors]) -> tuple[Tensor, ...]:
    """Of keys, then of values; data stands in where a storage has no scale."""
    return tuple(x for p in pools for x in (p.data_PWD, p.data_PWD if p.scale_PW is None else p.scale_PW))


def _switches(pools: tuple[PageTensors, PageTensors]) -> dict[str, int]:
    """What is compiled into a kernel."""
    page_tokens, head_dim = pools[0].data_PWD.shape[1], pools[0].head_dim
    return {
        "PAGE_TOKENS": page_tokens,
        "HEAD_DIM": head_dim,
        "BLOCK_D": 1 << (head_dim - 1).bit_length(),
        "K_HAS_SCALE": pools[0].scale_PW is not None,
        "V_HAS_SCALE": pools[1].scale_PW is not None,
    }
