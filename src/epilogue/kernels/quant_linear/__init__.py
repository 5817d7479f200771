"""Linear layers whose weights are 4-bit or 8-bit codes with a scale and a zero point a group."""

from epilogue.kernels.quant_linear.ending import NO_ENDING, Ending, finish
from epilogue.kernels.quant_linear.op import Backend, quant_linear
from epilogue.kernels.quant_linear.packing import (
    KNOWN_BITS,
    QuantWeight,
    dense,
    num_groups,
    pack_codes,
    pack_words,
    round_to_codes,
    unpack_codes,
    unpack_words,
)

__all__ = [
    "KNOWN_BITS",
    "NO_ENDING",
    "Backend",
    "Ending",
    "QuantWeight",
    "dense",
    "finish",
    "num_groups",
    "pack_codes",
    "pack_words",
    "quant_linear",
    "round_to_codes",
    "unpack_codes",
    "unpack_words",
]
