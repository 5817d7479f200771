"""What FlashAttention 4's kernel does with a score: the bias it adds and the mask it lays over blocks on the diagonal.

Written in CuTe's Python, which is compiled into the kernel. Slopes come as its arguments and not in a tensor: with a
tensor the kernel guards each of its indices by divisions, two for every score.
"""

from typing import Any

import cutlass
from cutlass import Float32, cute
from flash_attn.cute.utils import scalar_to_ssa, ssa_to_scalar

_SHIFT, _SHIFT_BITS = 1.5 * 2**23, 0x4B400000
"""Around this number fp32 counts in ones: adding a whole number to its bits adds it to the number."""


def add_bias(
    score: Any,
    batch: Any,
    head: Any,
    *,
    q_idx: Any,
    kv_idx: Any,
    seqlen_info: Any,
    aux_tensors: Any,
    aux_scalars: tuple[Any, ...],
) -> Any:
    """score - slope * distance in fp32, and a number that is the same for all keys, which no softmax sees.

    That number is the rounding of slope * _SHIFT. The rest is rounded once, in a product that ends in a sum. The bias
    is an addition and such a product, the same for scores on a diagonal; the sum with the score takes in the product
    of the score with its scale. ``hopper.MOST_KEYS`` is how far the shift carries.
    """
    slope, this_head = aux_scalars[0], ssa_to_scalar(head)
    for other_head in range(1, len(aux_scalars)):  # one head a tile: chosen once, ahead of the keys
        slope = cutlass.select_(this_head == other_head, aux_scalars[other_head], slope)
    # As scalars: the compiler then sees which scores lie on one diagonal.
    ahead = ssa_to_scalar(kv_idx - q_idx - (seqlen_info.seqlen_k - seqlen_info.seqlen_q))
    shifted = (ahead + _SHIFT_BITS).bitcast(Float32)
    return score + scalar_to_ssa(cute.math.fma(shifted, slope, slope * -_SHIFT), Float32)


add_bias.__vec_size__ = 1  # type: ignore[attr-defined]


def is_causal(
    batch: Any, head: Any, q_idx: Any, kv_idx: Any, seqlen_info: Any, aux_tensors: Any, aux_scalars: tuple[Any, ...]
) -> Any:
    """Whether a key is not ahead of the query."""
    return kv_idx - q_idx <= scalar_to_ssa(seqlen_info.seqlen_k - seqlen_info.seqlen_q, cutlass.Int32)
