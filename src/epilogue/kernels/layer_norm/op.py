"""Layer norms: what they mean and which backend runs them."""

from importlib import import_module
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.early_launch import allows_early_launch

Backend = Literal["reference", "triton"]
MOST_ROWS = 16
"""With more there are programs enough to fill a card, and PyTorch's kernel of the norm alone is as good."""
MOST_COLUMNS = 16384


def layer_norm(
    x: Tensor, weight_C: Tensor, bias_C: Tensor | None, *, eps: float, backend: Backend | None = None
) -> Tensor:
    """``torch.nn.functional.layer_norm`` over the last axis.

    PyTorch's gives a row 128 threads: on an H200 7.7 us for one row of 4,096, a sixteenth of a decode step in all
    layers together (docs/log.md).

    Args:
        x: [..., C].
        weight_C: gains.
        bias_C: None for none.
        eps: added to the variance.
        backend: ``triton`` if None where all is on a GPU, no gradient is wanted, and rows are few and not too wide;
            otherwise ``reference``.

    Returns:
        [..., C] in the dtype of x; means are fp32 (fp64 for fp64).
    """
    if (backend or _choose(x, weight_C, bias_C)) == "reference":
        return F.layer_norm(x, weight_C.shape, weight_C, bias_C, eps)
    return _run(x, None, weight_C, bias_C, eps)[1]


def sum_layer_norm(
    x: Tensor, term: Tensor, weight_C: Tensor, bias_C: Tensor | None, *, eps: float, backend: Backend | None = None
) -> tuple[Tensor, Tensor]:
    """x + term and the norm of that; arguments are as in ``layer_norm``.

    One kernel reads both and writes both, of many rows too: the sum is not read back for its norm.

    Args:
        x: [..., C].
        term: of the same shape and dtype.
        weight_C: gains.
        bias_C: None for none.
        eps: added to the variance.
        backend: as ``layer_norm``, however many rows there are.

    Returns:
        The sum, rounded to the dtype of x, and the norm of the rounded sum.
    """
    if (backend or _choose(x, weight_C, bias_C, is_sum=True)) == "reference" or term.dtype != x.dtype:
        total = x + term
        return total, layer_norm(total, weight_C, bias_C, eps=eps, backend=backend)
    return _run(x, term, weight_C, bias_C, eps)


def _run(x: Tensor, term: Tensor | None, weight_C: Tensor, bias_C: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, or x where there is no term, and the norm."""
    # Triton comes in with the first call: a machine without an accelerator may lack it.
    kernel = import_module("epilogue.kernels.layer_norm.kernel").norm_kernel
    x_RC = x.contiguous().view(-1, x.shape[-1])
    term_RC = x_RC if term is None else term.contiguous().view_as(x_RC)
    sum_RC = x_RC if term is None else torch.empty_like(x_RC)
    out_RC = torch.empty_like(x_RC)
    width = 1 << (x_RC.shape[1] - 1).bit_length()
    bias = weight_C if bias_C is None else bias_C
    kernel[(len(x_RC),)](
        x_RC, term_RC, sum_RC, weight_C, bias, out_RC, x_RC.shape[1],
        EPS=eps, HAS_TERM=term is not None, HAS_BIAS=bias_C is not None, BLOCK_C=width,
        ALLOWS_EARLY=allows_early_launch(x.device), num_warps=max(1, min(16, width // 256)),
    )  # fmt: skip
    return sum_RC.view_as(x), out_RC.view_as(x)


def _choose(x: Tensor, weight_C: Tensor, bias_C: Tensor | None, *, is_sum: bool = False) -> Backend:
    if torch.is_grad_enabled() or not x.is_cuda or not 0 < len(weight_C) <= MOST_COLUMNS:
        return "reference"
    num_rows = x.numel() // len(weight_C)
    fits = num_rows > 0 and (is_sum or num_rows <= MOST_ROWS)
    same = {x.dtype, weight_C.dtype} | (set() if bias_C is None else {bias_C.dtype}) in (
        {torch.float32}, {torch.bfloat16}, {torch.float16},
    )  # fmt: skip
    return "triton" if fits and same else "reference"
