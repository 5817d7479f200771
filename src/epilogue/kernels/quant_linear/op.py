"""A linear layer with quantised weights: what it means, what it checks, and which backend runs it."""

from collections.abc import Callable
from importlib import import_module
from typing import Literal, cast

import torch
from torch import Tensor

from epilogue.kernels.extension import native_is_available
from epilogue.kernels.quant_linear.ending import NO_ENDING, Ending, finish
from epilogue.kernels.quant_linear.gradient import through_frozen
from epilogue.kernels.quant_linear.packing import QuantWeight, num_groups

Backend = Literal["reference", "tiled", "packed", "row", "native"]
MOST_PACKED_ROWS = 64
"""Rows of one call of ``packed``."""
MOST_SINGLE_ROWS = 4
"""Rows of one call of ``row``."""
MOST_ROW_NUMBERS = 65536
"""Inputs of all rows of one call of ``row``, which holds them in registers."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def quant_linear(
    x_RI: Tensor, weight: QuantWeight, *, ending: Ending = NO_ENDING, backend: Backend | None = None
) -> Tensor:
    """out_RO = x_RI @ weight_OI.T, the weight being scale * (code - zero point), and what is done with that.

    Args:
        x_RI: rows of inputs in the layer's own order; float32, bfloat16, float16 or float64.
        weight: on the same device.
        ending: ``row`` rounds once, behind it; the others before it too.
        backend: chosen by device and shape if None.

    Returns:
        out_RO in the dtype of x_RI, to which weights are rounded before they are multiplied. (``native`` and ``row``
        multiply few rows in fp32, or what is as exact, with weights that are not rounded.) Differentiable in x_RI.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
    """
    check_weight(weight)
    if x_RI.ndim != 2 or x_RI.shape[1] != weight.in_features or x_RI.dtype not in _DTYPES:
        raise ValueError(
            f"wanted rows of {weight.in_features} floats for this weight, got {x_RI.dtype} {tuple(x_RI.shape)}"
        )
    if x_RI.device != weight.codes_OI.device:
        raise ValueError(f"rows are on {x_RI.device} and the weight on {weight.codes_OI.device}; use one device")
    name = backend or _choose(x_RI, weight)
    run = _load(name)
    if torch.is_grad_enabled() and (x_RI.requires_grad or ending.requires_grad):
        return finish(through_frozen(run, x_RI, weight), ending)
    if name == "row":
        return run(x_RI, weight, ending=ending)
    return finish(run(x_RI, weight), ending)


def _choose(x_RI: Tensor, weight: QuantWeight) -> Backend:
    """The one place that knows which backend is good for what."""
    if x_RI.device.type == "cpu":
        wants_gradient = torch.is_grad_enabled() and x_RI.requires_grad
        is_wide = torch.float64 in (x_RI.dtype, weight.scales_OG.dtype)
        return "native" if native_is_available() and not wants_gradient and not is_wide else "tiled"
    # Past so many rows a product is bound by arithmetic, and dequantising the weight once is cheaper.
    if not x_RI.is_cuda or not 1 <= len(x_RI) <= MOST_PACKED_ROWS or x_RI.dtype == torch.float64:
        return "tiled"
    return "row" if _suits_row(x_RI, weight) else "packed"


def _suits_row(x_RI: Tensor, weight: QuantWeight) -> bool:
    """Whether rows are few and narrow, and four words of codes, which are read at once, have one scale."""
    has_whole_words = weight.in_features * weight.bits % 32 == 0
    has_wide_groups = weight.group_size * weight.bits % 128 == 0 or weight.group_size == weight.in_features
    is_few = len(x_RI) <= MOST_SINGLE_ROWS and x_RI.numel() <= MOST_ROW_NUMBERS
    return is_few and has_whole_words and has_wide_groups and x_RI.dtype in (torch.bfloat16, torch.float16)


def _load(backend: Backend) -> Callable[..., Tensor]:
    """Loaded when first called: some backends need what a machine may lack."""
    module = import_module(f"epilogue.kernels.quant_linear.{backend}")
    return cast(Callable[..., Tensor], getattr(module, f"quant_linear_{backend}"))


def check_weight(weight: QuantWeight) -> None:
    """Refuse parts that do not fit together; shapes and dtypes only.

    Raises:
        ValueError: they do not.
    """
    outputs, inputs = weight.out_features, weight.in_features
    if not 1 <= weight.group_size <= inputs:
        raise ValueError(f"group_size must be 1 to {inputs}, the number of inputs, got {weight.group_size}")
    wanted = (outputs, num_groups(inputs, weight.group_size))
    codes, order = weight.codes_OI, weight.order_I
    if codes.dtype != torch.uint8 or weight.zeros_OG.dtype != torch.int16 or not weight.scales_OG.is_floating_point():
        raise ValueError(
            f"codes must be uint8, zero points int16 and scales floats, got {codes.dtype}, {weight.zeros_OG.dtype} "
            f"and {weight.scales_OG.dtype}"
        )
    if weight.scales_OG.shape != wanted or weight.zeros_OG.shape != wanted:
        raise ValueError(
            f"{outputs} outputs and {inputs} inputs in groups of {weight.group_size} have scales and zero points "
            f"{list(wanted)}, got {list(weight.scales_OG.shape)} and {list(weight.zeros_OG.shape)}"
        )
    if order is not None and (order.shape != (inputs,) or order.dtype != torch.int32):
        raise ValueError(f"the order of inputs must be int32 [{inputs}], got {order.dtype} {list(order.shape)}")
