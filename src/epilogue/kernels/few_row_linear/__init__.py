"""A linear layer for one or a few rows: decode's, bound by reading the weights."""

from epilogue.kernels.few_row_linear.op import MOST_ROWS, Backend, few_row_linear

__all__ = ["MOST_ROWS", "Backend", "few_row_linear"]
