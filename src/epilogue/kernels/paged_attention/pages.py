"""Writing tokens into pages and reading them back."""

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.storage import PageTensors, Rows, dequantize, quantize

# Pages that are read at a time, so that what is between their codes and the result stays in a processor's cache.
_PAGES_AT_ONCE = 64


def write_pages(pages: PageTensors, x_KTD: Tensor, page_ids_KP: Tensor, start: int | Tensor) -> None:
    """Quantise T new tokens of each of K heads and put them into their pages.

    K is any number of rows: heads, and sequences too, since ``start`` may differ by row. Never waits for the device.

    Args:
        pages: the pool.
        x_KTD: numbers of any float dtype; or [T, D] with ids [P].
        page_ids_KP: int64, for every row the pages that cover its tokens; all of them must be live (>= 0) and no
            two tokens may share a place.
        start: offset of the first token in the first page listed; an integer, or int64 [K].

    Raises:
        ValueError: shapes disagree, or the pages do not cover the tokens.
        IndexError: on the CPU, a page that is not in the pool.
    """
    if x_KTD.ndim == 2:
        x_KTD, page_ids_KP = x_KTD[None], page_ids_KP[None]
    num_tokens, page_tokens = x_KTD.shape[1], pages.data_PWD.shape[1]
    if page_ids_KP.ndim != 2 or page_ids_KP.shape[0] != x_KTD.shape[0] or x_KTD.shape[2] != pages.head_dim:
        raise ValueError(
            f"wanted x [K, T, {pages.head_dim}] and page ids [K, P], got {x_KTD.shape} and {page_ids_KP.shape}"
        )
    if isinstance(start, int) and not 0 <= start <= page_ids_KP.shape[1] * page_tokens - num_tokens:
        raise ValueError(f"{page_ids_KP.shape[1]} pages do not cover {num_tokens} tokens from offset {start}")
    offsets_KT = torch.arange(num_tokens, device=x_KTD.device).expand(x_KTD.shape[:2])
    offsets_KT = offsets_KT + (start[:, None] if isinstance(start, Tensor) else start)
    ids_KT = page_ids_KP.gather(1, offsets_KT // page_tokens)
    rows = (ids_KT * page_tokens + offsets_KT % page_tokens).flatten()
    write_rows(pages, quantize(x_KTD.flatten(0, 1), pages.storage), rows)


def write_rows(pages: PageTensors, rows: Rows, places_R: Tensor) -> None:
    """Put tokens of one head each, as ``quantize`` gives them, where they belong. Never waits for the device.

    Args:
        pages: the pool, in the storage of the rows.
        rows: [R, D].
        places_R: int64, a page's id times its tokens, plus the token's place in it; no two alike.
    """
    for pool, new in zip((pages.data_PWD, pages.scale_PW, pages.zero_PW), rows, strict=True):
        if pool is not None and new is not None:
            pool.flatten(0, 1).index_copy_(0, places_R, new)


def gather_pages(pages: PageTensors, page_ids: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tokens of the listed pages, one after the other, in the basis they were given in.

    Args:
        pages: the pool.
        page_ids: int64 [..., P], every one live.
        dtype: fp32, fp64, or bf16 for bf16 pages.

    Returns:
        x_SD for ids [P], x_KSD for ids [K, P], with S = P * PAGE_TOKENS; contiguous. Rows that were never written
        hold anything.
    """
    flat = page_ids.flatten()
    if pages.data_PWD.dtype == dtype:
        out_PWD = pages.data_PWD.index_select(0, flat)
    else:
        out_PWD = pages.data_PWD.new_empty((len(flat), pages.data_PWD.shape[1], pages.head_dim), dtype=dtype)
        at_once = _PAGES_AT_ONCE if flat.device.type == "cpu" else len(flat)
        for out, ids in zip(out_PWD.split(at_once), flat.split(at_once), strict=True):
            out.copy_(dequantize(pages.rows(ids), dtype=dtype))
    return out_PWD.view(*page_ids.shape[:-1], -1, pages.head_dim)


def row_norms(x: Tensor) -> Tensor:
    """An upper bound of the L2 norm of every row [..., D], fp32 [...], tight to 1e-6.

    Of rows as ``dequantize`` gives them it holds in the basis of the rotation as in the original one, in fp32, rounding
    included.
    """
    return _upper(torch.linalg.vector_norm(x.float(), dim=-1, dtype=torch.float64))


def _upper(norms: Tensor) -> Tensor:
    # The rotation rounds, by less than sqrt(D) * 2^-24 of the norm, and so does fp32.
    grown = (norms * (1 + 2.0**-20)).float()
    return torch.nextafter(grown, torch.full_like(grown, torch.inf))
