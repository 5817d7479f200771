"""Decode over pages of keys and values of one head each, in fp32, bf16, int8 or int4."""

from epilogue.kernels.paged_attention.chunk import largest_of_pages, read_pages, write_chunk
from epilogue.kernels.paged_attention.chunk_bounds import can_bound, page_scores, tile_exponents, tile_prefixes
from epilogue.kernels.paged_attention.op import MOST_QUERIES, Backend, paged_attention
from epilogue.kernels.paged_attention.pages import gather_pages, row_norms, write_pages, write_rows
from epilogue.kernels.paged_attention.rotation import rotate
from epilogue.kernels.paged_attention.storage import (
    PAGE_TOKENS,
    PageTensors,
    Rows,
    Storage,
    allocate_pages,
    bytes_per_page,
    dequantize,
    quantize,
)
from epilogue.kernels.paged_attention.take_in import PrefixBounds, TakenIn, can_take_in, take_in

__all__ = [
    "MOST_QUERIES",
    "PAGE_TOKENS",
    "Backend",
    "PageTensors",
    "PrefixBounds",
    "Rows",
    "Storage",
    "TakenIn",
    "allocate_pages",
    "bytes_per_page",
    "can_bound",
    "can_take_in",
    "dequantize",
    "gather_pages",
    "largest_of_pages",
    "page_scores",
    "paged_attention",
    "quantize",
    "read_pages",
    "rotate",
    "row_norms",
    "take_in",
    "tile_exponents",
    "tile_prefixes",
    "write_chunk",
    "write_pages",
    "write_rows",
]
