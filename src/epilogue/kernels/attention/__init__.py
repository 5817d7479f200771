"""Causal ALiBi attention for prefill, decode and training."""

from epilogue.kernels.attention.native import attention_over_pages, reads_pages
from epilogue.kernels.attention.op import Backend, attention
from epilogue.kernels.attention.tiles import TILE_TOKENS

__all__ = ["TILE_TOKENS", "Backend", "attention", "attention_over_pages", "reads_pages"]
