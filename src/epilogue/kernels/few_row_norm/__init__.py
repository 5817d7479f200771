"""Layer norms of few rows on a GPU."""

from epilogue.kernels.few_row_norm.op import MOST_ROWS, Backend, few_row_norm, few_row_sum_norm

__all__ = ["MOST_ROWS", "Backend", "few_row_norm", "few_row_sum_norm"]
