"""Linear layers of few rows: what they mean and which backend runs them."""

from typing import Literal

import torch
from torch import Tensor

from epilogue.kernels.extension import native_is_available
from epilogue.kernels.few_row_linear.native import few_row_linear_native
from epilogue.kernels.few_row_linear.reference import few_row_linear_reference

Backend = Literal["reference", "native"]
MOST_ROWS = 4
"""With more rows PyTorch's matrix product is faster or as fast (docs/log.md)."""


def few_row_linear(
    x: Tensor,
    weight_FC: Tensor,
    bias_F: Tensor | None = None,
    *,
    narrow_FC: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """``torch.nn.functional.linear``, with both cores on the weights where there are 1 to MOST_ROWS rows.

    PyTorch's fp32 product with one row runs on one core, at a third of the memory's bandwidth on two (docs/log.md).

    Args:
        x: [..., C].
        weight_FC: [F, C].
        bias_F: [F].
        narrow_FC: the very same numbers in bf16 or fp16, if fp32 weights are that and finite: read instead, they are
            half the bytes.
        backend: ``native`` if None where the extension is there, no gradient is wanted, all is fp32 or all bf16 on the
            CPU, and the rows are few; otherwise ``reference``.

    Returns:
        [..., F] in the dtype of x; sums are fp32.
    """
    if (backend or _choose(x, weight_FC, bias_F)) == "reference":
        return few_row_linear_reference(x, weight_FC, bias_F)
    return few_row_linear_native(x, weight_FC if narrow_FC is None else narrow_FC, bias_F)


def _choose(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Backend:
    if torch.is_grad_enabled() or weight_FC.device.type != "cpu" or not native_is_available():
        return "reference"
    few = 0 < x.numel() <= MOST_ROWS * weight_FC.shape[1] and x.shape[-1] == weight_FC.shape[1]
    same = x.dtype == weight_FC.dtype and (bias_F is None or bias_F.dtype == x.dtype)
    plain = weight_FC.dtype in (torch.float32, torch.bfloat16) and weight_FC.is_contiguous() and x.device.type == "cpu"
    return "native" if few and same and plain else "reference"
