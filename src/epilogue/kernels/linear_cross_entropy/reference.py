"""Linear layer and cross-entropy in their plainest form, with all logits in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy_reference(
    x_RC: Tensor, weight_VC: Tensor, targets_R: Tensor, *, factor: float, ignored: int, dtype: torch.dtype
) -> Tensor:
    """The mean as a scalar; products in ``dtype``, the rest in fp32 (fp64 for fp64 rows)."""
    wide = torch.float64 if x_RC.dtype == torch.float64 else torch.float32
    logits_RV = F.linear(x_RC.to(dtype), weight_VC.to(dtype)).to(wide) * factor
    return F.cross_entropy(logits_RV, targets_R, ignore_index=ignored)
