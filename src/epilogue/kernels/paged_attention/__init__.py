"""Decode over pages of keys and values of one head each, in fp32, bf16, int8 or int4."""

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

__all__ = [
    "MOST_QUERIES",
    "PAGE_TOKENS",
    "Backend",
    "PageTensors",
    "Rows",
    "Storage",
    "allocate_pages",
    "bytes_per_page",
    "dequantize",
    "gather_pages",
    "paged_attention",
    "quantize",
    "rotate",
    "row_norms",
    "write_pages",
    "write_rows",
]
