"""One row, or a few, on a GPU: a new token's product, bound by reading the codes."""

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from epilogue.kernels.early_launch import allows_early_launch
from epilogue.kernels.quant_linear.ending import NO_ENDING, Ending
from epilogue.kernels.quant_linear.packing import QuantWeight
from epilogue.kernels.quant_linear.row_kernels import row_kernel


@dataclass(frozen=True)
class Launch:
    """How a product is shared out."""

    block_outputs: int
    """Whose codes are on their way at a time."""
    tiles: int
    """Of so many outputs each that a program takes, one after the other."""
    num_warps: int
    is_early: bool = False
    """Whether codes are fetched while the kernel before is still at work, where the device can (``early_launch``)."""


def launch_for(rows: int, outputs: int, inputs: int, bits: int) -> Launch:
    """Enough programs for a card of 132 multiprocessors, and as few as that, since each of them prepares the row."""
    num_warps = max(1, min(16, _lanes(inputs, bits) // 32))
    block_outputs = (8 if num_warps <= 4 else 4) // (1 if rows == 1 else 2)
    return Launch(block_outputs, max(1, min(4, outputs // (512 * block_outputs))), num_warps)


def quant_linear_row(
    x_RI: Tensor, weight: QuantWeight, *, ending: Ending = NO_ENDING, launch: Launch | None = None
) -> Tensor:
    """out_RO in the dtype of the inputs, bf16 or fp16; no weight is rounded, and sums over 16 bytes of codes are exact.

    Inputs are taken in steps of 2^-15 to 2^-14 of the largest of the 32 (of 8-bit codes: 16) that stand together.
    """
    x_RI, outputs, inputs, bits = x_RI.contiguous(), weight.out_features, weight.in_features, weight.bits
    launch = launch or launch_for(len(x_RI), outputs, inputs, bits)
    # Triton's interpreter, which alone brings this file to the CPU, cuts what it ought to round to bf16.
    stored = x_RI.dtype if x_RI.is_cuda else torch.float32
    out_RO = torch.empty(len(x_RI), outputs, dtype=stored, device=x_RI.device)
    onto_RO = None if ending.onto_RO is None else ending.onto_RO.contiguous()
    early = {"launch_pdl": True} if launch.is_early and allows_early_launch(x_RI.device) else {}
    row_kernel[(triton.cdiv(outputs, launch.block_outputs * launch.tiles),)](
        x_RI, weight.codes_OI.contiguous(), weight.scales_OG.contiguous(), weight.zeros_OG.contiguous(),
        weight.zeros_OG if weight.order_I is None else weight.order_I.contiguous(),
        out_RO if onto_RO is None else onto_RO, out_RO, outputs,
        INPUTS=inputs, GROUP=weight.group_size, BITS=bits, HAS_ORDER=weight.order_I is not None, ROWS=len(x_RI),
        BLOCK_O=launch.block_outputs, BLOCK_L=_lanes(inputs, bits), TILES=launch.tiles,
        CLIP=ending.clip, HAS_ONTO=onto_RO is not None,
        IS_EARLY=bool(early), IS_COMPILED=x_RI.is_cuda, num_warps=launch.num_warps, **early,
    )  # fmt: skip
    return out_RO.to(x_RI.dtype)


def _lanes(inputs: int, bits: int) -> int:
    """Runs of 16 bytes of an output's codes, up to a power of two."""
    return triton.next_power_of_2(triton.cdiv(inputs * bits, 128))  # type: ignore[no-any-return]
