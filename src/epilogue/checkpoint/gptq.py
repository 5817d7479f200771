"""The four ways GPTQ's writers laid quantised layers out, read into one and written from it.

    layout     tensors of a layer                         zero points                          groups
    kobold-0   qweight, zeros, scales, bias               floats, already times the scale      one an output
    kobold-1   qweight, qzeros, scales (fp32), bias       stored = zero point - 1              consecutive inputs
    gptq       qweight, qzeros, scales, g_idx, (bias)     stored = zero point - 1              by g_idx
    gptq_v2    the same                                   stored as they are                   by g_idx

KoboldAI's version 2 is "gptq". Codes are packed along the inputs, zero points along the outputs; docs/formats.md has
shapes and sources. The layout shows in the tensors' names, but not whether zero points are off by one: for that the
config is believed, and what symmetric files must hold is checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from epilogue.errors import CheckpointError
from epilogue.model import Layout, Quantization, QuantWeight, pack_codes, pack_words, unpack_codes, unpack_words

LEAVES = ("qweight", "qzeros", "zeros", "scales", "g_idx")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_WORD_BITS = 32
# How far a float zero point over its scale may lie from a whole number: what fp16 rounds at 16.
_OFF_WHOLE = 0.02


@dataclass(frozen=True)
class StoredLayer:
    """The tensors of one quantised layer as a file holds them, and the layer's own shape."""

    name: str
    """With the file, for messages."""
    tensors: Mapping[str, Tensor]
    in_features: int
    out_features: int

    @property
    def layout(self) -> Layout:
        """What the names say; ``gptq`` stands for ``gptq_v2`` as well, which has the same names."""
        if "zeros" in self.tensors and "qzeros" not in self.tensors:
            return "kobold-0"
        return "gptq" if "g_idx" in self.tensors else "kobold-1"

    @property
    def bits(self) -> int:
        """What the shape of the codes says."""
        words = self._tensor("qweight")
        bits, rest = divmod(words.shape[0] * _WORD_BITS, self.in_features) if words.ndim == 2 else (0, 1)
        if rest or words.shape[1:] != (self.out_features,) or bits not in (4, 8):
            raise CheckpointError(
                f"{self.name}.qweight is {list(words.shape)}; {self.in_features} inputs and {self.out_features} "
                f"outputs in 4 or 8 bits were wanted, and other widths are not run here"
            )
        return bits

    @property
    def num_groups(self) -> int:
        """What the shape of the scales says."""
        scales = self._tensor("scales")
        if self.layout == "kobold-0":
            wanted, groups = (self.out_features, 1), 1
        else:
            groups = scales.shape[0] if scales.ndim == 2 else 0
            wanted = (groups, self.out_features)
        if scales.shape != wanted or not 1 <= groups <= self.in_features:
            raise CheckpointError(
                f"{self.name}.scales is {list(scales.shape)}; a scale for each of {self.out_features} outputs and each "
                f"group of the {self.in_features} inputs was wanted"
            )
        return groups

    def _tensor(self, leaf: str) -> Tensor:
        if leaf not in self.tensors:
            raise CheckpointError(f"{self.name} has {', '.join(sorted(self.tensors))} and lacks {leaf}; fetch it again")
        tensor, is_float = self.tensors[leaf], leaf in ("scales", "zeros")
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise CheckpointError(f"{self.name}.{leaf} holds no dense values; save it as a plain tensor")
        fits = tensor.dtype in _FLOATS if is_float else tensor.dtype in (torch.int32, torch.int64)
        if not fits:
            raise CheckpointError(
                f"{self.name}.{leaf} is {tensor.dtype}; {'floats' if is_float else 'int32'} were wanted there"
            )
        return tensor

    def read(self, quantization: Quantization, *, device: torch.device | str = "cpu") -> QuantWeight:
        """The layer in our own layout, by what ``agreed`` has found.

        Raises:
            CheckpointError: tensors missing, misshapen, of other dtypes, or with groups of other sizes.
        """
        bits, group_size = quantization.bits, quantization.group_of(self.in_features)
        codes_IO = unpack_words(self._tensor("qweight").to(device, torch.int32), bits, dim=0)
        order_I = self._order(group_size, device) if "g_idx" in self.tensors else None
        codes_OI = codes_IO.T if order_I is None else codes_IO[order_I.long()].T
        scales_OG = self._tensor("scales").to(device)
        scales_OG = scales_OG.clone() if self.layout == "kobold-0" else scales_OG.T.contiguous()
        zeros_OG = self._zeros(bits, scales_OG, is_plain=quantization.layout == "gptq_v2")
        if quantization.is_symmetric:
            self._check_symmetric(zeros_OG, bits, quantization)
        return QuantWeight(bits, group_size, pack_codes(codes_OI, bits), scales_OG, zeros_OG, order_I)

    def _order(self, group_size: int, device: torch.device | str) -> Tensor | None:
        groups_I = self._tensor("g_idx").to(device, torch.int64)
        wanted_I = torch.arange(self.in_features, device=device) // group_size
        if groups_I.shape != wanted_I.shape:
            raise CheckpointError(
                f"{self.name}.g_idx is {list(groups_I.shape)} and should be [{self.in_features}]; fetch the file again"
            )
        if torch.equal(groups_I, wanted_I):
            return None
        order_I = groups_I.argsort(stable=True)
        if not torch.equal(groups_I[order_I], wanted_I):
            raise CheckpointError(
                f"{self.name}.g_idx does not put {group_size} inputs into each of {self.num_groups} groups; "
                f"such groups are not run here"
            )
        return order_I.to(torch.int32)

    def _zeros(self, bits: int, scales_OG: Tensor, *, is_plain: bool) -> Tensor:
        if self.layout == "kobold-0":
            return self._float_zeros(bits, scales_OG)
        words, groups = self._tensor("qzeros"), self.num_groups
        if words.shape != (groups, self.out_features * bits // _WORD_BITS):
            raise CheckpointError(
                f"{self.name}.qzeros is {list(words.shape)} and should be "
                f"[{groups}, {self.out_features * bits // _WORD_BITS}]; fetch the file again"
            )
        stored_GO = unpack_words(words.to(scales_OG.device, torch.int32), bits, dim=1).to(torch.int16)
        return (stored_GO if is_plain else stored_GO + 1).T.contiguous()

    def _float_zeros(self, bits: int, scales_OG: Tensor) -> Tensor:
        scaled_OG = self._tensor("zeros").to(scales_OG.device)
        if scaled_OG.shape != scales_OG.shape:
            raise CheckpointError(
                f"{self.name}.zeros is {list(scaled_OG.shape)} and should be {list(scales_OG.shape)}; fetch it again"
            )
        zeros_OG = (scaled_OG.double() / scales_OG.double()).nan_to_num(nan=0.0)
        whole_OG = zeros_OG.round()
        if bool(((zeros_OG - whole_OG).abs() > _OFF_WHOLE).any()) or not bool(
            ((whole_OG >= 0) & (whole_OG <= 2**bits)).all()
        ):
            raise CheckpointError(
                f"{self.name}.zeros over its scales are no codes from 0 to {2**bits}; the file is damaged or "
                f"of another layout"
            )
        return whole_OG.to(torch.int16)

    def _check_symmetric(self, zeros_OG: Tensor, bits: int, quantization: Quantization) -> None:
        middle = 2 ** (bits - 1)
        if not bool((zeros_OG == middle).all()):
            raise CheckpointError(
                f"the config says sym = true and the layout {quantization.layout}, so that every zero point of "
                f"{self.name} should be {middle}, and they go from {int(zeros_OG.min())} to {int(zeros_OG.max())}; "
                f"correct sym, or the layout (gptq stores a zero point less one, gptq_v2 as it is)"
            )


def agreed(layers: list[StoredLayer], declared: Quantization | None, where: str) -> Quantization:
    """What names and shapes of the tensors say, checked against what the config says.

    Raises:
        CheckpointError: layers that contradict each other or the config.
    """
    said = declared or Quantization()
    widest = max(layers, key=lambda layer: layer.in_features)
    for layer in layers:
        if declared is not None and layer.bits != said.bits:
            raise CheckpointError(f"{where} says {said.bits} bits and {layer.name} has {layer.bits}; correct the one")
        if layer.bits != widest.bits or layer.layout != widest.layout:
            raise CheckpointError(
                f"{layer.name} has {layer.bits} bits in the layout {layer.layout}, and {widest.name} {widest.bits} "
                f"bits in {widest.layout}; quantise the model in one way"
            )
    found = replace(said, bits=widest.bits, layout=_layout(widest, said, where))
    if found.group_size is None:
        inputs, groups = widest.in_features, widest.num_groups
        found = replace(found, group_size=-1 if groups == 1 else -(-inputs // groups))
    for layer in layers:
        groups = -(-layer.in_features // found.group_of(layer.in_features))
        if layer.num_groups != groups:
            raise CheckpointError(
                f"{where} says groups of {found.group_size}, which are {groups} of the {layer.in_features} inputs of "
                f"{layer.name}, and the tensors have {layer.num_groups}; correct the group size"
                if said.group_size is not None
                else f"{layer.name} has {layer.num_groups} groups and {widest.name} {widest.num_groups}; these are no "
                f"groups of one size"
            )
    return found


def _layout(layer: StoredLayer, said: Quantization, where: str) -> Layout:
    seen = layer.layout
    if said.layout is None or said.layout == seen:
        return seen
    if said.layout == "gptq_v2" and seen == "gptq":
        return "gptq_v2"
    raise CheckpointError(
        f"{where} says the layout {said.layout}, and the tensors of {layer.name} ({', '.join(sorted(layer.tensors))}) "
        f"are those of {seen}; correct the config"
    )


def stored_tensors(weight: QuantWeight, layout: Layout) -> dict[str, Tensor]:
    """The tensors of one layer in this layout, without its bias; ``kobold-0`` is not written.

    Scales are fp16, or fp32 in ``kobold-1``.

    Raises:
        CheckpointError: the layout cannot hold this weight.
    """
    bits, group_size, order_I = weight.bits, weight.group_size, weight.order_I
    zeros_OG = weight.zeros_OG if layout == "gptq_v2" else weight.zeros_OG - 1
    if int(zeros_OG.min()) < 0 or int(zeros_OG.max()) >= 2**bits:
        raise CheckpointError(
            f"zero points from {int(weight.zeros_OG.min())} to {int(weight.zeros_OG.max())} do not fit the layout "
            f"{layout}; write the model as {'gptq' if layout == 'gptq_v2' else 'gptq_v2'}"
        )
    if layout == "kobold-1" and order_I is not None:
        raise CheckpointError("the layout kobold-1 has no room for groups in act-order; write the model as gptq")
    scales_GO = weight.scales_OG.T.to(torch.float32 if layout == "kobold-1" else torch.float16).contiguous()
    if not torch.equal(scales_GO.float(), weight.scales_OG.T.float()):
        raise CheckpointError(f"scales in {weight.scales_OG.dtype} do not fit fp16, which the layout {layout} has")
    groups_I = torch.arange(weight.in_features, dtype=torch.int32, device=scales_GO.device) // group_size
    codes_OI = unpack_codes(weight.codes_OI, bits)
    if order_I is not None:
        back_I = order_I.long().argsort()
        codes_OI, groups_I = codes_OI[:, back_I], groups_I[back_I]
    tensors = {
        "qweight": pack_words(codes_OI.T, bits, dim=0),
        "qzeros": pack_words(zeros_OG.T.to(torch.uint8), bits, dim=1),
        "scales": scales_GO,
    }
    return tensors if layout == "kobold-1" else tensors | {"g_idx": groups_I}
