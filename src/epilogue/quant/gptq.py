"""GPTQ: codes for one layer's weights that change its outputs least on inputs that were seen.

After Frantar et al. 2022 (arXiv 2210.17323): columns of the weight are rounded one after another, and what each one
loses is made good, as far as can be, by the columns that are still to come; how far follows from the inputs' second
moments H. Columns are worked on in blocks, and a block's corrections reach the columns behind it as one product.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from epilogue.errors import CheckpointError
from epilogue.model import QuantWeight, pack_codes

_BLOCK = 128
_MEASURED_OUTPUTS = 512
# The share of the mean diagonal that is added to H's, tenfold at each new try.
_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights become codes.

    Raises:
        ValueError: bits other than 4 and 8, or a group size that is neither -1 nor positive.
    """

    bits: int = 4
    group_size: int = 128
    """Inputs that share a scale and a zero point; -1 for all."""
    is_symmetric: bool = True
    """Zero points in the middle of the range, as most readers have it; else wherever the group's numbers lie."""
    has_act_order: bool = False
    """Whether columns are taken by the size of their inputs, largest first."""
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or (self.group_size < 1 and self.group_size != -1):
            raise ValueError(
                f"wanted 4 or 8 bits and a positive group size or -1, got {self.bits} and {self.group_size}"
            )

    def group_of(self, in_features: int) -> int:
        """Inputs of a group in a layer of so many."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)


def solve(weight_OI: Tensor, moments_II: Tensor, scheme: Scheme) -> QuantWeight:
    """Quantise a layer by GPTQ.

    Args:
        weight_OI: fp32 or fp64, which is what everything is computed in; not changed.
        moments_II: sums of x x^T over inputs x, in the same dtype; any factor will do. Not changed.
        scheme: how.

    Raises:
        CheckpointError: numbers that are not finite.

    Memory: the weight and three more of the size of ``moments_II``.
    """
    _check_finite(weight_OI, moments_II)
    order_I = moments_II.diagonal().argsort(descending=True) if scheme.has_act_order else None
    weight_OI = weight_OI.clone() if order_I is None else weight_OI[:, order_I]
    moments_II = moments_II.clone() if order_I is None else moments_II[order_I][:, order_I]
    factor_II = _corrections(moments_II, scheme.damping)
    outputs, inputs = weight_OI.shape
    codes_IO = torch.empty(inputs, outputs, dtype=torch.uint8, device=weight_OI.device)
    scales, zeros = [], []
    group = scheme.group_of(inputs)
    for start, end in _blocks(inputs, group):
        if start % group == 0:
            scale_O, zero_O = grid(weight_OI[:, start : start + group], scheme)
            scales.append(scale_O)
            zeros.append(zero_O)
        block_IO = weight_OI[:, start:end].T.contiguous()
        losses_IO = torch.empty_like(block_IO)
        for i, column in enumerate(range(start, end)):
            codes_IO[column], rounded_O = rounded(block_IO[i], scales[-1], zeros[-1], scheme.bits)
            losses_IO[i] = (block_IO[i] - rounded_O) / factor_II[column, column]
            block_IO[i:] -= factor_II[column, column:end, None] * losses_IO[i]
        weight_OI[:, end:] -= losses_IO.T @ factor_II[start:end, end:]
    return _packed(codes_IO.T, scales, zeros, scheme, None if order_I is None else order_I.to(torch.int32))


def round_to_nearest(weight_OI: Tensor, scheme: Scheme) -> QuantWeight:
    """The plain way: every weight to the nearest code of its group, no inputs seen.

    Raises:
        CheckpointError: numbers that are not finite.
    """
    _check_finite(weight_OI)
    group = scheme.group_of(weight_OI.shape[1])
    codes, scales, zeros = [], [], []
    for part_OI in weight_OI.split(group, dim=1):
        scale_O, zero_O = grid(part_OI, scheme)
        codes.append(rounded(part_OI.T, scale_O, zero_O, scheme.bits)[0].T)
        scales.append(scale_O)
        zeros.append(zero_O)
    return _packed(torch.cat(codes, dim=1), scales, zeros, scheme, None)


def grid(weight_OI: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """scale_O in fp16 and zero_O in int16 for one group.

    Zero points are at least 1, so that files that store them less one hold them as well.
    """
    low_O, high_O = weight_OI.amin(dim=1).clamp(max=0), weight_OI.amax(dim=1).clamp(min=0)
    most = 2**scheme.bits - 1
    if scheme.is_symmetric:
        scale_O, zero_O = 2 * torch.maximum(-low_O, high_O) / most, torch.full_like(low_O, (most + 1) / 2)
    else:
        scale_O = (high_O - low_O) / most
        zero_O = (-low_O / scale_O).nan_to_num(nan=1.0).round().clamp(1, most)
    # Codes are chosen for the scale that is stored. A group of zeros has any scale.
    scale_O = scale_O.half()
    scale_O = torch.where(scale_O > 0, scale_O, torch.finfo(torch.float16).smallest_normal)
    if not bool(scale_O.isfinite().all()):
        raise CheckpointError("a weight is too large for a scale in fp16; such a model cannot be stored as GPTQ")
    return scale_O, zero_O.to(torch.int16)


def rounded(weight: Tensor, scale_O: Tensor, zero_O: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes in uint8 and the numbers they stand for, of weights [..., O]."""
    scale, zero = scale_O.to(weight.dtype), zero_O.to(weight.dtype)
    codes = (weight / scale).round_().add_(zero).clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8), (codes - zero) * scale


def output_error(weight_OI: Tensor, other_OI: Tensor, moments_II: Tensor | None) -> float:
    """How far the outputs move, squared, as a share of the outputs; without moments, the weights themselves.

    Taken of so many outputs at most, evenly spaced: of all, a wide layer's would cost as much as to quantise it.
    """
    step = -(-len(weight_OI) // _MEASURED_OUTPUTS)
    weight_OI = weight_OI[::step]
    change_OI = other_OI[::step].to(weight_OI.dtype) - weight_OI

    def size(x_OI: Tensor) -> float:
        seen_OI = x_OI if moments_II is None else x_OI @ moments_II
        return float((seen_OI * x_OI).sum(dtype=torch.float64))

    return size(change_OI) / max(size(weight_OI), torch.finfo(torch.float64).tiny)


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(x.isfinite().all()) for x in tensors):
        raise CheckpointError("weights or inputs of the layer are not finite; check the model before quantising it")


def _blocks(inputs: int, group: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns, none longer than a block nor across the edge of a group."""
    start = 0
    while start < inputs:
        edge = (start // group + 1) * group
        end = min(start + _BLOCK, edge, inputs)
        yield start, end
        start = end


def _corrections(moments_II: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of H, damped; H is overwritten.

    An input that never came corrects nothing and needs no correction: it is rounded to nearest.
    """
    diagonal_I = moments_II.diagonal()
    mean = float(diagonal_I.mean())
    if mean == 0:
        return torch.eye(len(moments_II), dtype=moments_II.dtype, device=moments_II.device)
    diagonal_I[diagonal_I == 0] = mean
    added = damping * mean
    for _ in range(_TRIES):
        diagonal_I += added
        lower_II, trouble = torch.linalg.cholesky_ex(moments_II)
        if not trouble:
            inverse_II = torch.cholesky_inverse(lower_II)
            del lower_II
            upper_II: Tensor
            upper_II, trouble = torch.linalg.cholesky_ex(inverse_II, upper=True)
            if not trouble:
                return upper_II
        added *= 10
    raise CheckpointError(
        "the inputs' second moments cannot be inverted, even damped; calibrate on more or other books"
    )


def _packed(
    codes_OI: Tensor, scales: list[Tensor], zeros: list[Tensor], scheme: Scheme, order_I: Tensor | None
) -> QuantWeight:
    scales_OG, zeros_OG = torch.stack(scales, dim=1), torch.stack(zeros, dim=1)
    group = scheme.group_of(codes_OI.shape[1])
    return QuantWeight(scheme.bits, group, pack_codes(codes_OI, scheme.bits), scales_OG, zeros_OG, order_I)
