"""Layer norms on a GPU, of few rows or of a sum."""

from epilogue.kernels.layer_norm.op import MOST_ROWS, Backend, layer_norm, sum_layer_norm

__all__ = ["MOST_ROWS", "Backend", "layer_norm", "sum_layer_norm"]
