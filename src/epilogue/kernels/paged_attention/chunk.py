"""A chunk of a text and its pages: new tokens written, and all up to them read as attention takes them.

On a GPU each is one Triton launch a layer, in which a number is in fp32 only between its code and its place. Elsewhere,
for int4 and for fp64 PyTorch's operators, the slow twin.
"""

from importlib import import_module

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.pages import gather_pages, row_norms, write_pages
from epilogue.kernels.paged_attention.storage import PAGE_TOKENS, PageTensors

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_pages(
    pools: tuple[PageTensors, PageTensors],
    page_ids_KP: Tensor,
    *,
    num_tokens: int,
    dtype: torch.dtype,
    first_page_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys and values of the listed pages, as attention takes them.

    A code is multiplied with its scale in fp32 (fp64 for that dtype) and rounded once. The result is all the memory
    that a GPU needs for it.

    Args:
        pools: of keys and of values.
        page_ids_KP: int64, for every head its pages in token order. Tokens of a page of -1 hold anything.
        num_tokens: of each head; the last page may have more.
        dtype: fp32, bf16, fp16 or fp64.
        first_page_K: int64, of every head the first page that anybody looks at; tokens before it may hold anything,
            and a kernel leaves them. None: all are looked at.

    Returns:
        k_TKD and v_TKD, of which each head's tokens lie one behind the other.
    """
    if _has_kernel(pools, dtype):
        return _read_by_kernel(pools, page_ids_KP, num_tokens, dtype, first_page_K)
    k_TKD, v_TKD = (_read_by_operators(pages, page_ids_KP, num_tokens, dtype) for pages in pools)
    return k_TKD, v_TKD


def write_chunk(
    pools: tuple[PageTensors, PageTensors], k_TKD: Tensor, v_TKD: Tensor, page_ids_KP: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    """Put a chunk's keys and values into their pages, as ``write_pages`` does.

    Args:
        pools: of keys and of values.
        k_TKD: numbers of any float dtype.
        v_TKD: as the keys.
        page_ids_KP: int64, for every head the pages that cover its tokens, all live.
        start: offset of the first token in the first page listed.

    Returns:
        stored_KTD, the keys as their storage gives them back, in fp64 for fp64 keys and else in fp32; and
        norms_KP, fp32: none of the new keys in a page has a larger norm, as ``row_norms`` bounds it.

    Raises:
        ValueError: shapes disagree, or the pages do not cover the tokens.
    """
    if _has_kernel(pools, k_TKD.dtype):
        return _write_by_kernel(pools, k_TKD, v_TKD, page_ids_KP, start)
    return _write_by_operators(pools, k_TKD, v_TKD, page_ids_KP, start)


def largest_of_pages(x_KT: Tensor, start: int) -> Tensor:
    """largest_KP of numbers >= 0 of every page's tokens, the first of which has ``start`` others before it."""
    padded_KT = torch.nn.functional.pad(x_KT, (start, -(start + x_KT.shape[1]) % PAGE_TOKENS))
    return padded_KT.reshape(len(padded_KT), -1, PAGE_TOKENS).amax(dim=2)


def _has_kernel(pools: tuple[PageTensors, PageTensors], dtype: torch.dtype) -> bool:
    return dtype in _DTYPES and all(p.data_PWD.device.type == "cuda" and p.storage != "int4" for p in pools)


def _read_by_operators(pages: PageTensors, page_ids_KP: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
    # Codes become numbers in fp32 at least; only what is stored as bf16 may stay so.
    stays = dtype in (torch.float64, pages.data_PWD.dtype)
    x_KSD = gather_pages(pages, page_ids_KP.clamp(min=0), dtype=dtype if stays else torch.float32)
    return x_KSD[:, :num_tokens].transpose(0, 1).to(dtype)


def _read_by_kernel(
    pools: tuple[PageTensors, PageTensors],
    page_ids_KP: Tensor,
    num_tokens: int,
    dtype: torch.dtype,
    first_page_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    # Triton comes in with the first call: a machine without an accelerator may lack it.
    kernel = import_module("epilogue.kernels.paged_attention.chunk_kernels").read_pages_kernel
    page_ids_KP, head_dim = _rows_in_a_piece(page_ids_KP), pools[0].head_dim
    num_heads, num_columns = page_ids_KP.shape
    k_KTD, v_KTD = (page_ids_KP.new_empty((num_heads, num_tokens, head_dim), dtype=dtype) for _ in pools)
    kernel[(num_columns, num_heads, 2)](
        *_data_and_scale(pools), k_KTD, v_KTD, page_ids_KP, page_ids_KP.stride(0),
        page_ids_KP if first_page_K is None else first_page_K.contiguous(), num_tokens,
        **_switches(pools), HAS_FIRST=first_page_K is not None, num_warps=8,
    )  # fmt: skip
    return k_KTD.transpose(0, 1), v_KTD.transpose(0, 1)


def _write_by_operators(
    pools: tuple[PageTensors, PageTensors], k_TKD: Tensor, v_TKD: Tensor, page_ids_KP: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    for pages, x_TKD in zip(pools, (k_TKD, v_TKD), strict=True):
        write_pages(pages, x_TKD.transpose(0, 1), page_ids_KP, start)
    wide = torch.float64 if k_TKD.dtype == torch.float64 else torch.float32
    stored_KTD = gather_pages(pools[0], page_ids_KP, dtype=wide)[:, start : start + len(k_TKD)]
    return stored_KTD, largest_of_pages(row_norms(stored_KTD), start)


def _write_by_kernel(
    pools: tuple[PageTensors, PageTensors], k_TKD: Tensor, v_TKD: Tensor, page_ids_KP: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    (num_tokens, num_heads, head_dim), num_columns = k_TKD.shape, page_ids_KP.shape[1]
    if (len(page_ids_KP), pools[0].head_dim) != (num_heads, head_dim) or v_TKD.shape != k_TKD.shape:
        raise ValueError(
            f"wanted k and v [T, {len(page_ids_KP)}, {pools[0].head_dim}], got {k_TKD.shape} and {v_TKD.shape}"
        )
    if not 0 <= start <= num_columns * PAGE_TOKENS - num_tokens:
        raise ValueError(f"{num_columns} pages do not cover {num_tokens} tokens from offset {start}")
    kernel = import_module("epilogue.kernels.paged_attention.chunk_kernels").write_chunk_kernel
    k_TKD, v_TKD, page_ids_KP = (_rows_in_a_piece(x) for x in (k_TKD, v_TKD, page_ids_KP))
    stored_KTD = k_TKD.new_empty((num_heads, num_tokens, head_dim), dtype=torch.float32)
    norms_KP = stored_KTD.new_empty((num_heads, num_columns))
    kernel[(num_columns, num_heads, 2)](
        k_TKD, v_TKD, *k_TKD.stride()[:2], *v_TKD.stride()[:2],
        *_data_and_scale(pools), page_ids_KP, page_ids_KP.stride(0), start, num_tokens, stored_KTD, norms_KP,
        **_switches(pools), BLOCK_W=32, num_warps=4,
    )  # fmt: skip
    return stored_KTD, norms_KP


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
