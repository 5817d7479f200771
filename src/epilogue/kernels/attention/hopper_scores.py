"""What FlashAttention 4's kernel does with a score: the bias it adds and the mask it lays over blocks on the diagonal.

Written in CuTe's Python, which is compiled into the kernel. Slopes come as its arguments and not in a tensor: with a
tensor the kernel guards each of its indices by divisions, two for every score.
"""

from typing import Any

import cutlass
from flash_attn.cute.utils import scalar_to_ssa, ssa_to_scalar


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
    """score - slope * distance, in fp32; positions and their difference are whole numbers."""
    slope, this_head = aux_scalars[0], ssa_to_scalar(head)
    for other_head in range(1, len(aux_scalars)):  # one head a tile: chosen once, ahead of the keys
        slope = cutlass.select_(this_head == other_head, aux_scalars[other_head], slope)
    ahead = kv_idx - q_idx - (seqlen_info.seqlen_k - seqlen_info.seqlen_q)
    return score + ahead.to(cutlass.Float32) * slope


add_bias.__vec_size__ = 1  # type: ignore[attr-defined]


def is_causal(
    batch: Any, head: Any, q_idx: Any, kv_idx: Any, seqlen_info: Any, aux_tensors: Any, aux_scalars: tuple[Any, ...]
) -> Any:
    """Whether a key is not ahead of the query."""
    return kv_idx - q_idx <= scalar_to_ssa(seqlen_info.seqlen_k - seqlen_info.seqlen_q, cutlass.Int32)
