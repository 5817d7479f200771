"""The linear layer in its plainest form: PyTorch's."""

import torch.nn.functional as F
from torch import Tensor


def few_row_linear_reference(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``."""
    return F.linear(x, weight_FC, bias_F)
