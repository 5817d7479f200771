"""bf16 weights that learn from steps smaller than their last bit.

Either the lower half of an fp32 weight is kept beside its upper half, which the model computes with; or every step is
rounded up or down at random, so that on average nothing is lost.
"""

import torch
from torch import Tensor

_HALF = 1 << 15


def split(wide: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 to the nearest bf16 and an int16 of what is missing; together exact for every finite value."""
    bits = wide.view(torch.int32)
    upper = (bits + _HALF) >> 16
    lower = bits - (upper << 16)
    return upper.to(torch.int16).view(torch.bfloat16), lower.to(torch.int16)


def join(narrow: Tensor, lower: Tensor) -> Tensor:
    """The inverse of ``split``."""
    bits = (narrow.view(torch.int16).to(torch.int32) << 16) + lower
    return bits.view(torch.float32)


def round_at_random(wide: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to one of the two nearest bf16, the nearer the likelier: the expectation is the value itself.

    What is no finite number stays what it is.
    """
    noise = torch.randint(1 << 16, wide.shape, generator=generator, dtype=torch.int32, device=wide.device)
    rounded = ((wide.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return rounded.where(wide.isfinite(), wide).to(torch.bfloat16)
