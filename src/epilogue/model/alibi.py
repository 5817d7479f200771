"""ALiBi slopes (Press et al., arXiv 2108.12409), as every MPT has them."""

import torch
from torch import Tensor


def alibi_slopes(n_heads: int, bias_max: float = 8) -> Tensor:
    """What each head pays, in natural-log units, for a key one token further back.

    For a power of two P of heads, slope i is 2**-(i*bias_max/P), i = 1..P. Other counts take the next power of two and
    of its slopes those at odd places (0-based), then those at even places, as many as there are heads.

    Returns:
        slopes_H, fp32, positive; the flattest is 2**-bias_max.
    """
    power = 1 << (n_heads - 1).bit_length()
    slopes_H = torch.exp2(-torch.arange(1, power + 1, dtype=torch.float64) * (bias_max / power))
    if power != n_heads:
        slopes_H = torch.cat([slopes_H[1::2], slopes_H[::2]])[:n_heads]
    return slopes_H.to(torch.float32)
