"""What a quantised linear layer means: the dense weight, and a matrix product."""

import torch
from torch import Tensor

from epilogue.kernels.quant_linear.packing import QuantWeight, dense


def quant_linear_reference(x_RI: Tensor, weight: QuantWeight) -> Tensor:
    """out_RO in fp64 arithmetic for fp64 inputs, else fp32; in the dtype of the inputs. Stores the whole weight."""
    wide = torch.float64 if x_RI.dtype == torch.float64 else torch.float32
    return (x_RI.to(wide) @ dense(weight, dtype=wide).T).to(x_RI.dtype)
