"""How exact a backend has to be."""

from typing import Any

import torch
import torch.nn.functional as F

from epilogue.kernels.quant_linear import QuantWeight, dense, quant_linear


def assert_as_exact_as_pytorch(x_RI: torch.Tensor, weight: QuantWeight, backend: Any) -> None:
    """Like ``assert_is_as_exact`` of what the op gives with this backend."""
    assert_is_as_exact(quant_linear(x_RI, weight, backend=backend), x_RI, weight)


def assert_is_as_exact(out: torch.Tensor, x_RI: torch.Tensor, weight: QuantWeight) -> None:
    """Against fp64, at most twice the error of PyTorch's own product with the dense weight in that dtype."""
    truth = quant_linear(x_RI.double(), weight, backend="reference")
    plain = F.linear(x_RI, dense(weight, dtype=x_RI.dtype)).double()
    assert (out.dtype, out.shape) == (x_RI.dtype, (len(x_RI), weight.out_features))
    allowed = 2 * (plain - truth).abs().max() + torch.finfo(x_RI.dtype).eps * truth.abs().max()
    assert (out.double() - truth).abs().max() <= allowed
