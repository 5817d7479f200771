"""Moments in 8 bits: blocks along rows with a scale each, codes equally spaced in a root of the value.

Block-wise scales are those of Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861). Their
codes come from a table; the root of a value over its block's largest needs none and serves the same end: small values
keep a relative precision. Blocks never cross a row, so a moment that is sharded over rows has the same codes as a whole
one.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["signed", "unsigned"]
BLOCK = 256
"""Values of a row that share a scale."""
# Of signed values the square root, to 127 steps on either side; of squares, which span twice the decades, the fourth
# root, to 255 steps.
_POWER = {"signed": 2, "unsigned": 4}
_STEPS = {"signed": 127, "unsigned": 255}
_DTYPE = {"signed": torch.int8, "unsigned": torch.uint8}


def to_eight_bits(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Codes of the shape of x, int8 or uint8, and fp32 scales [..., ceil(last / BLOCK)].

    An unsigned value that is not zero has a code that is not: a step is divided by its root, and a little too short
    is harmless where infinite is not.
    """
    blocks = _blocks(x)
    scales = blocks.abs().amax(-1)
    share = blocks.abs() / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    codes = (share ** (1 / _POWER[kind]) * _STEPS[kind]).round_()
    codes = codes * blocks.sign() if kind == "signed" else codes.maximum((blocks > 0).to(codes.dtype))
    return _rows(codes, x.shape[-1]).to(_DTYPE[kind]), scales


def from_eight_bits(codes: Tensor, scales: Tensor, kind: Kind) -> Tensor:
    """fp32 values of the shape of the codes."""
    share = _blocks(codes.float()) / _STEPS[kind]
    powers = share * share.abs() if kind == "signed" else share ** _POWER[kind]
    return _rows(powers * scales[..., None], codes.shape[-1])


def _blocks(x: Tensor) -> Tensor:
    blocks: Tensor = F.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    return blocks


def _rows(blocks: Tensor, width: int) -> Tensor:
    rows: Tensor = blocks.flatten(-2)[..., :width].contiguous()
    return rows
