"""Linear layer and cross-entropy as one operation: what it means, what it checks, and which backend runs it."""

from typing import Literal

import torch
from torch import Tensor

from epilogue.kernels.linear_cross_entropy.chunked import linear_cross_entropy_chunked
from epilogue.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference

Backend = Literal["reference", "chunked"]
IGNORED = -100
"""The target that counts as none; PyTorch's own."""
# Logits of a chunk: half a GiB of them in fp32 on a GPU, and few enough to stay near a CPU's cache.
_CHUNK_LOGITS = {"cpu": 1 << 22}
_CHUNK_LOGITS_ELSEWHERE = 1 << 27


def linear_cross_entropy(
    x_RC: Tensor,
    weight_VC: Tensor,
    targets_R: Tensor,
    *,
    factor: float = 1.0,
    chunk_rows: int | None = None,
    backend: Backend = "chunked",
) -> Tensor:
    """Mean over rows of -log softmax(factor * weight_VC @ x)[target], in nats.

    Args:
        x_RC: rows; float32, bfloat16, float16 or float64. Under autocast products are taken in its dtype.
        weight_VC: of the same device.
        targets_R: int64, 0 to V - 1, or IGNORED for a row that counts for nothing.
        factor: on the logits.
        chunk_rows: rows whose logits are in memory at once; chosen by V and the device if None.
        backend: the reference has them all.

    Returns:
        A scalar in fp32 (fp64 for fp64 rows), NaN if all rows are IGNORED. Differentiable once, in x_RC and weight_VC;
        softmax, sums and the weight's gradient are of that dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Memory beyond the inputs: a chunk's logits twice, and for gradients R * C values of x's dtype and V * C wide ones.
    """
    if x_RC.ndim != 2 or weight_VC.ndim != 2 or x_RC.shape[1] != weight_VC.shape[1]:
        raise ValueError(f"wanted rows [R, C] and a weight [V, C], got {tuple(x_RC.shape)}, {tuple(weight_VC.shape)}")
    if targets_R.shape != x_RC.shape[:1] or targets_R.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 [{len(x_RC)}], one a row, got {targets_R.dtype} {tuple(targets_R.shape)}"
        )
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    device = x_RC.device.type
    dtype = torch.promote_types(x_RC.dtype, weight_VC.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if backend == "reference":
        return linear_cross_entropy_reference(x_RC, weight_VC, targets_R, factor=factor, ignored=IGNORED, dtype=dtype)
    most = _CHUNK_LOGITS.get(device, _CHUNK_LOGITS_ELSEWHERE)
    rows = chunk_rows or max(1, most // len(weight_VC))
    return linear_cross_entropy_chunked(
        x_RC, weight_VC, targets_R, factor=factor, ignored=IGNORED, dtype=dtype, chunk_rows=rows
    )
