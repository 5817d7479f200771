"""The one home of the bit layouts of quantised weights: ours in memory, and the 32-bit words that other programs store.

A weight of a linear layer is scale * (code - zero point), with one scale and one zero point for a group of consecutive
inputs of one output. In memory the codes of an output lie together: a byte each for 8 bits, two a byte for 4 bits, the
even input in the low half. Codes are unsigned. A layer whose groups were made in another order of its
inputs (GPTQ's act-order) is stored in that order, so that groups are consecutive there too, and knows the order.

GPTQ's words hold 32 / bits codes each, the lowest bits first: codes along the inputs, zero points along the outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

WORD_BITS = 32
KNOWN_BITS = (4, 8)


@dataclass(frozen=True)
class QuantWeight:
    """The weight [O, I] of a linear layer, quantised."""

    bits: int
    """4 or 8."""
    group_size: int
    """Stored inputs of a group, at most I; the last group may have fewer."""
    codes_OI: Tensor
    """uint8 [O, I]; for 4 bits [O, I/2], see ``pack_codes``."""
    scales_OG: Tensor
    """fp16, bf16 or fp32."""
    zeros_OG: Tensor
    """int16, 0 to 2^bits: the way they are stored in files allows 2^bits as well."""
    order_I: Tensor | None = None
    """int32: stored input i is the layer's input order_I[i]; None for the layer's own order."""

    @property
    def out_features(self) -> int:
        """O."""
        return self.codes_OI.shape[0]

    @property
    def in_features(self) -> int:
        """I."""
        return self.codes_OI.shape[1] * 8 // self.bits


def pack_codes(codes_OI: Tensor, bits: int) -> Tensor:
    """Codes 0..2^bits-1 as uint8, one a byte, to how they are stored in memory, the rows one after another.

    Raises:
        ValueError: other bits, or an odd number of inputs for 4 bits.
    """
    check_bits(bits)
    if bits == 8:
        return codes_OI.contiguous()
    if codes_OI.shape[1] % 2:
        raise ValueError(f"4-bit codes lie two a byte and need an even number of inputs, got {codes_OI.shape[1]}")
    return (codes_OI[:, 0::2] | codes_OI[:, 1::2] << 4).contiguous()


def unpack_codes(stored_OI: Tensor, bits: int) -> Tensor:
    """The inverse of ``pack_codes``: uint8 [O, I]."""
    if bits == 8:
        return stored_OI
    return torch.stack((stored_OI & 15, stored_OI >> 4), dim=-1).flatten(-2)


def pack_words(values: Tensor, bits: int, *, dim: int) -> Tensor:
    """uint8 values to int32 words along one of two axes.

    Raises:
        ValueError: other bits, or a length that does not fill whole words.
    """
    check_bits(bits)
    per_word = WORD_BITS // bits
    if values.shape[dim] % per_word:
        raise ValueError(f"{values.shape[dim]} values of {bits} bits do not fill words of {per_word}")
    parts = values.movedim(dim, -1).unflatten(-1, (-1, per_word)).to(torch.int64)
    words = (parts << torch.arange(0, WORD_BITS, bits, device=values.device)).sum(-1)
    # Above 2^31 the sign bit is set: the same 32 bits as a signed number.
    signed: Tensor = words - (words >> (WORD_BITS - 1) << WORD_BITS)
    return signed.to(torch.int32).movedim(-1, dim).contiguous()


def unpack_words(words: Tensor, bits: int, *, dim: int) -> Tensor:
    """The inverse of ``pack_words``: uint8."""
    check_bits(bits)
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    values: Tensor = words.movedim(dim, -1)[..., None] >> shifts & 2**bits - 1
    return values.to(torch.uint8).flatten(-2).movedim(-1, dim).contiguous()


def dequantize(weight: QuantWeight, *, dtype: torch.dtype = torch.float32, rows: slice | None = None) -> Tensor:
    """weight_OI of these outputs (all if None), in the order of the stored inputs, rounded to ``dtype`` once.

    Products are taken in fp32, where they are exact for fp16 and bf16 scales; in fp64 for fp64.
    """
    rows = slice(None) if rows is None else rows
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes_OI = unpack_codes(weight.codes_OI[rows], weight.bits).to(wide)
    scales_OG, zeros_OG = weight.scales_OG[rows].to(wide), weight.zeros_OG[rows].to(wide)
    whole = weight.in_features // weight.group_size
    end = whole * weight.group_size
    codes_OGI = codes_OI[:, :end].unflatten(1, (whole, weight.group_size))
    codes_OGI.sub_(zeros_OG[:, :whole, None]).mul_(scales_OG[:, :whole, None])
    if end < weight.in_features:
        codes_OI[:, end:].sub_(zeros_OG[:, -1:]).mul_(scales_OG[:, -1:])
    return codes_OI.to(dtype)


def dense(weight: QuantWeight, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """weight_OI in the layer's own order of inputs."""
    stored_OI = dequantize(weight, dtype=dtype)
    return stored_OI if weight.order_I is None else stored_OI[:, weight.order_I.long().argsort()]


def round_to_codes(weight_OI: Tensor, *, group_size: int) -> QuantWeight:
    """The nearest 8-bit codes of finite weights, zero in the middle; a scale, fp32, is the group's largest size / 127.

    Raises:
        ValueError: groups that do not divide the inputs.
    """
    outputs, inputs = weight_OI.shape
    if inputs % group_size:
        raise ValueError(f"groups of {group_size} do not divide {inputs} inputs")
    parts_OGI = weight_OI.detach().float().unflatten(1, (-1, group_size))
    scales_OG = (parts_OGI.abs().amax(-1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    codes_OGI = (parts_OGI / scales_OG[..., None]).round_().add_(128).to(torch.uint8)
    zeros_OG = torch.full(scales_OG.shape, 128, dtype=torch.int16, device=weight_OI.device)
    return QuantWeight(8, group_size, codes_OGI.view(outputs, inputs), scales_OG, zeros_OG)


def num_groups(in_features: int, group_size: int) -> int:
    """G."""
    return -(-in_features // group_size)


def check_bits(bits: int) -> None:
    """Refuse other widths than are run.

    Raises:
        ValueError: not 4 or 8.
    """
    if bits not in KNOWN_BITS:
        raise ValueError(f"bits must be 4 or 8, got {bits}")
