"""Paged attention on a GPU: every head's visited pages are shared among splits, whose results a second kernel joins.

Grids and buffers depend on shapes alone and nothing waits for the device, so that a decode step can be captured in a
CUDA graph. How many pages each split takes is worked out on the device, from the head's own first page and length.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from epilogue.kernels.early_launch import allows_early_launch
from epilogue.kernels.paged_attention.rotation import rotate
from epilogue.kernels.paged_attention.row_kernels import visit_int8_pages_of_a_row_kernel
from epilogue.kernels.paged_attention.split_kernels import join_splits_kernel, visit_pages_kernel
from epilogue.kernels.paged_attention.storage import PageTensors


class RowTiles(NamedTuple):
    """How ``visit_int8_pages_of_a_row_kernel`` is compiled."""

    keys: int
    """Keys of a tile."""
    unroll: int
    """Tiles of a step."""
    warps: int
    stages: int
    """Of the pipeline of page ids, tiles and products."""


# Program blocks for every multiprocessor; a machine without any (Triton's interpreter) counts as two multiprocessors.
# Heads of short reach are through at once: many small splits even out what the others read.
_BLOCKS_PER_PROCESSOR = 16
_MOST_SPLITS = 128
_MOST_ROWS = 32
# Of a join's program, which reads the parts of all splits at once: twice as many programs as multiprocessors.
_JOIN_COLUMNS = 16
# Splits of one row are alike in what they read, however short its head's reach: so more of them.
_ROW_BLOCKS_PER_PROCESSOR = 64
_MOST_ROW_SPLITS = 256
_ROW_TILES = RowTiles(keys=16, unroll=4, warps=4, stages=3)


def paged_attention_split(
    q_BTHD: Tensor,
    k: PageTensors,
    v: PageTensors,
    page_table_BKP: Tensor,
    num_keys_B: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_page_BH: Tensor | None = None,
) -> Tensor:
    """Attention in two launches; products in bf16 with fp32 sums for bf16 queries (unless pages are fp32), else fp32.

    Memory beyond the inputs: up to 128 splits' partial outputs, 4 bytes * D a query row each.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    num_queries, num_kv_heads = q_BTHD.shape[1], page_table_BKP.shape[1]
    q_BKRD = _prepare_queries(q_BTHD, k, v, num_kv_heads)
    first = num_keys_B if first_page_BH is None else first_page_BH.contiguous()
    tables = page_table_BKP.contiguous(), num_keys_B.contiguous(), slopes_H.contiguous(), first
    has_first = first_page_BH is not None
    # One query a key head leaves most of a matrix unit idle; words of four codes need no conversion.
    if q_BKRD.shape[2] == 1 and k.storage == v.storage == "int8" and k.head_dim % 4 == 0:
        parts = _visit_for_a_row(q_BKRD, k, v, tables, scale=scale, has_first=has_first)
    else:
        parts = _visit(q_BKRD, k, v, tables, num_queries=num_queries, scale=scale, has_first=has_first)
    out_BKRD = _join(*parts, dtype=torch.float32 if v.storage == "int4" or not q_BTHD.is_cuda else q_BTHD.dtype)
    out_BKRD = rotate(out_BKRD) if v.storage == "int4" else out_BKRD
    out_BHTD: Tensor = out_BKRD.unflatten(2, (-1, num_queries)).flatten(1, 2)
    return out_BHTD.transpose(1, 2).to(q_BTHD.dtype)


def _visit(
    q_BKRD: Tensor,
    k: PageTensors,
    v: PageTensors,
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    num_queries: int,
    scale: float,
    has_first: bool,
) -> tuple[Tensor, Tensor]:
    """Every split's softmax averages, and its largest scores and sums of weights."""
    (batch, num_kv_heads, num_rows, _), num_columns = q_BKRD.shape, tables[0].shape[2]
    block_rows = min(_MOST_ROWS, max(16, triton.next_power_of_2(num_rows)))
    row_blocks = triton.cdiv(num_rows, block_rows)
    num_programs = batch * num_kv_heads * row_blocks
    num_splits = _num_splits(num_programs, num_columns, q_BKRD.device, blocks=_BLOCKS_PER_PROCESSOR, most=_MOST_SPLITS)
    part_BKRPD, stats_BKRP = _room_for_parts(q_BKRD, num_splits)
    visit_pages_kernel[(num_splits, num_kv_heads * row_blocks, batch)](
        q_BKRD, *_pool_arguments(k), *_pool_arguments(v), *tables,
        part_BKRPD, stats_BKRP[0], stats_BKRP[1],
        scale, num_kv_heads, num_columns, num_rows, num_queries, num_splits,
        HAS_FIRST=has_first, BLOCK_R=block_rows, **_pool_switches(k, v),
    )  # fmt: skip
    return part_BKRPD, stats_BKRP


def _visit_for_a_row(
    q_BKRD: Tensor,
    k: PageTensors,
    v: PageTensors,
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    scale: float,
    has_first: bool,
) -> tuple[Tensor, Tensor]:
    """The same for one query a key head and int8 pages."""
    (batch, num_heads, _, _), num_columns = q_BKRD.shape, tables[0].shape[2]
    num_splits = _num_splits(
        batch * num_heads, num_columns, q_BKRD.device, blocks=_ROW_BLOCKS_PER_PROCESSOR, most=_MOST_ROW_SPLITS
    )
    part_BKRPD, stats_BKRP = _room_for_parts(q_BKRD, num_splits)
    visit_int8_pages_of_a_row_kernel[(num_splits, num_heads, batch)](
        q_BKRD, *_pool_arguments(k)[:2], *_pool_arguments(v)[:2], *tables,
        part_BKRPD, stats_BKRP[0], stats_BKRP[1],
        scale, num_heads, num_columns, num_splits, triton.cdiv(num_columns, num_splits),
        HAS_FIRST=has_first, **_row_switches(k, q_BKRD), num_warps=_ROW_TILES.warps,
    )  # fmt: skip
    return part_BKRPD, stats_BKRP


def _room_for_parts(q_BKRD: Tensor, num_splits: int) -> tuple[Tensor, Tensor]:
    *shape, head_dim = q_BKRD.shape
    part_BKRPD = q_BKRD.new_empty(*shape, num_splits, head_dim, dtype=torch.float32)
    return part_BKRPD, part_BKRPD.new_empty(2, *part_BKRPD.shape[:-1])


def _join(part_BKRPD: Tensor, stats_BKRP: Tensor, *, dtype: torch.dtype) -> Tensor:
    *shape, num_splits, head_dim = part_BKRPD.shape
    out_BKRD = part_BKRPD.new_empty(*shape, head_dim, dtype=dtype)
    block_splits = triton.next_power_of_2(num_splits)
    join_splits_kernel[(out_BKRD.shape[:3].numel(), triton.cdiv(head_dim, _JOIN_COLUMNS))](
        part_BKRPD, stats_BKRP[0], stats_BKRP[1], out_BKRD, num_splits,
        HEAD_DIM=head_dim, BLOCK_D=_JOIN_COLUMNS, BLOCK_P=block_splits,
        ALLOWS_EARLY=allows_early_launch(out_BKRD.device), num_warps=max(1, min(8, block_splits // 32)),
    )  # fmt: skip
    return out_BKRD


def _prepare_queries(q_BTHD: Tensor, k: PageTensors, v: PageTensors, num_kv_heads: int) -> Tensor:
    """Queries as rows of their key head, in the keys' basis and in the dtype of the products."""
    # Triton's interpreter, which alone brings this file to the CPU, multiplies bf16 as if it were integers.
    is_bf16 = q_BTHD.dtype == torch.bfloat16 and "float32" not in (k.storage, v.storage) and q_BTHD.is_cuda
    q_BTHD = rotate(q_BTHD) if k.storage == "int4" else q_BTHD
    q_BKRD: Tensor = q_BTHD.transpose(1, 2).unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
    return q_BKRD.to(torch.bfloat16 if is_bf16 else torch.float32).contiguous()


@lru_cache(maxsize=8)
def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _num_splits(num_programs: int, num_columns: int, device: torch.device, *, blocks: int, most: int) -> int:
    wanted = triton.cdiv(blocks * _num_processors(device), num_programs)
    return max(1, min(int(wanted), num_columns, most))


def _pool_arguments(pages: PageTensors) -> tuple[Tensor, Tensor, Tensor]:
    """Data, scales, zero points; a pool without them hands its data in as a pointer that is never followed."""
    factors = (pages.scale_PW, pages.zero_PW)
    return pages.data_PWD, *(pages.data_PWD if x is None else x for x in factors)  # type: ignore[return-value]


def _pool_switches(k: PageTensors, v: PageTensors) -> dict[str, Any]:
    """What the kernel is compiled for."""
    switches: dict[str, Any] = {"PAGE_TOKENS": k.data_PWD.shape[1], "HEAD_DIM": k.head_dim}
    # Two tiles of keys and two of values must fit the shared memory of any multiprocessor, 99 KiB.
    switches["BLOCK_N"] = 64 // (2 if "float32" in (k.storage, v.storage) else 1) // (2 if k.head_dim > 128 else 1)
    for letter, pages in (("K", k), ("V", v)):
        width = pages.data_PWD.shape[2]
        switches[f"{letter}_WIDTH"], switches[f"{letter}_BLOCK"] = width, max(16, triton.next_power_of_2(width))
        switches[f"{letter}_HAS_SCALE"] = pages.scale_PW is not None
        switches[f"{letter}_IS_PACKED"] = pages.zero_PW is not None
    return switches


def _row_switches(pages: PageTensors, q_BKRD: Tensor) -> dict[str, Any]:
    """What the kernel of single rows is compiled for."""
    return {
        "PAGE_TOKENS": pages.data_PWD.shape[1],
        "HEAD_DIM": pages.head_dim,
        "BLOCK_W": triton.next_power_of_2(pages.head_dim // 4),
        # A bf16 query has no more than two bytes say.
        "HAS_REST": q_BKRD.dtype != torch.bfloat16,
        "BLOCK_N": _ROW_TILES.keys,
        "UNROLL": _ROW_TILES.unroll // (2 if pages.head_dim > 128 else 1),
        "STAGES": _ROW_TILES.stages,
        "IS_COMPILED": q_BKRD.is_cuda,
    }
