"""The linear layers of a block, dense or quantised: which of the two is the config's to say."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from epilogue.kernels.few_row_linear import few_row_linear
from epilogue.kernels.quant_linear import (
    NO_ENDING,
    Ending,
    QuantWeight,
    dense,
    finish,
    num_groups,
    quant_linear,
    round_to_codes,
)
from epilogue.model.quantization import Quantization

QUANTISED_LAYERS = ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")
"""What is quantised in every block; embeddings, head and norms stay as they are."""


@dataclass(frozen=True)
class NarrowCopy:
    """fp32 weights once more as the bf16 or fp16 numbers that they are: half the bytes, and the same products."""

    weight_OI: Tensor
    version: int
    """Of the weights it was made of; they may have changed since."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> "NarrowCopy | None":
        """None where a weight is neither, or not finite: what was published in bf16 or fp16 and loaded as fp32 is."""
        if weight_OI.dtype != torch.float32 or weight_OI.is_inference() or not weight_OI.isfinite().all():
            return None
        copies = (weight_OI.detach().to(dtype) for dtype in (torch.bfloat16, torch.float16))
        return next((cls(copy, weight_OI._version) for copy in copies if torch.equal(copy.float(), weight_OI)), None)

    @staticmethod
    def standing_for(weight_OI: Tensor, copy: "NarrowCopy | None") -> Tensor | None:
        """The copy's numbers, if they are still the weights'."""
        return None if copy is None or copy.version != weight_OI._version else copy.weight_OI


_CODE_GROUP = 128


@dataclass(frozen=True)
class CodedCopy:
    """fp32 weights once more as 8-bit codes in groups of 128 inputs: a quarter of the bytes, nearly the products."""

    weight: QuantWeight
    version: int
    """Of the weights it was made of; they may have changed since."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> "CodedCopy | None":
        """None where groups do not divide the inputs, or a weight is not finite."""
        group_size = min(_CODE_GROUP, weight_OI.shape[1])
        if weight_OI.shape[1] % group_size or weight_OI.is_inference() or not weight_OI.isfinite().all():
            return None
        return cls(round_to_codes(weight_OI, group_size=group_size), weight_OI._version)

    @staticmethod
    def standing_for(weight_OI: Tensor, copy: "CodedCopy | None") -> QuantWeight | None:
        """The copy's codes, if they are still the weights'."""
        if copy is None or copy.version != weight_OI._version or copy.weight.codes_OI.device != weight_OI.device:
            return None
        return copy.weight


class Linear(nn.Linear):
    """PyTorch's, through ``kernels.few_row_linear``, which knows a faster way for the few rows of a decode step."""

    narrow: NarrowCopy | None = None
    adapter: nn.Module | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_module("adapter", None)

    def forward(self, x: Tensor) -> Tensor:
        """x weight^T + bias, [..., in] to [..., out], and what the adapter adds, if there is one."""
        narrow_OI = NarrowCopy.standing_for(self.weight, self.narrow)
        return _adapted(self.adapter, x, few_row_linear(x, self.weight, self.bias, narrow_FC=narrow_OI))


class QuantLinear(nn.Module):
    """A linear layer that holds codes, and multiplies with the numbers they stand for, rounded to the model's dtype.

    Codes, scales and zero points keep their own dtypes whatever the model is converted to: a scale in bf16 would be
    another model.
    """

    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor
    order_I: Tensor | None
    _like: Tensor
    bias: nn.Parameter | None
    adapter: nn.Module | None

    def __init__(self, in_features: int, out_features: int, *, quantization: Quantization, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = quantization.bits, quantization.group_of(in_features)
        groups = num_groups(in_features, self.group_size)
        self.register_buffer("codes_OI", torch.zeros(out_features, in_features * self.bits // 8, dtype=torch.uint8))
        self.register_buffer("scales_OG", torch.ones(out_features, groups, dtype=torch.float16))
        self.register_buffer("zeros_OG", torch.zeros(out_features, groups, dtype=torch.int16))
        self.register_buffer("order_I", None)
        # Its dtype is that of a dense weight in this place. Never on the meta device, from which nothing can be moved.
        self.register_buffer("_like", torch.empty(0, device="cpu"), persistent=False)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.register_module("adapter", None)

    @property
    def quant_weight(self) -> QuantWeight:
        """What the layer holds."""
        return QuantWeight(self.bits, self.group_size, self.codes_OI, self.scales_OG, self.zeros_OG, self.order_I)

    @quant_weight.setter
    def quant_weight(self, weight: QuantWeight) -> None:
        if (weight.out_features, weight.in_features) != (self.out_features, self.in_features):
            raise ValueError(
                f"a weight of {weight.out_features} outputs and {weight.in_features} inputs does not fit a layer of "
                f"{self.out_features} and {self.in_features}"
            )
        self.bits, self.group_size = weight.bits, weight.group_size
        self.codes_OI, self.scales_OG, self.zeros_OG = weight.codes_OI, weight.scales_OG, weight.zeros_OG
        self.order_I = weight.order_I

    @property
    def weight(self) -> Tensor:
        """weight_OI as it is used, made anew: a dense matrix in the model's dtype."""
        return dense(self.quant_weight, dtype=self._like.dtype)

    def forward(self, x: Tensor, ending: Ending = NO_ENDING) -> Tensor:
        """As ``Linear``, and what is done with that."""
        is_last = self.bias is None and self.adapter is None
        rows = quant_linear(x.flatten(0, -2), self.quant_weight, ending=_of_rows(ending) if is_last else NO_ENDING)
        out = rows.view(*x.shape[:-1], self.out_features)
        if is_last:
            return out
        return finish(_adapted(self.adapter, x, out if self.bias is None else out + self.bias), ending)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        """Follow the model to its device; scales keep their dtype, and the bias and ``_like`` take the model's."""
        dtype = self.scales_OG.dtype
        scales_OG = self.scales_OG
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales_OG.dtype != dtype:
            self.scales_OG = scales_OG.to(self.scales_OG.device)
        return self


def end_linear(layer: nn.Module, x: Tensor, ending: Ending) -> Tensor:
    """A layer, which may be anybody's, and what is done with its product."""
    if isinstance(layer, QuantLinear):
        return layer(x, ending)  # type: ignore[no-any-return]
    return finish(layer(x), ending)


def _of_rows(ending: Ending) -> Ending:
    return ending if ending.onto_RO is None else replace(ending, onto_RO=ending.onto_RO.flatten(0, -2))


def _adapted(adapter: nn.Module | None, x: Tensor, out: Tensor) -> Tensor:
    if adapter is None:
        return out
    added: Tensor = adapter(x)
    return out + added


def make_linear(
    in_features: int, out_features: int, *, quantization: Quantization | None, bias: bool
) -> Linear | QuantLinear:
    """A layer of a block: ``Linear``, or a ``QuantLinear`` where the model is quantised."""
    if quantization is None:
        return Linear(in_features, out_features, bias=bias)
    return QuantLinear(in_features, out_features, quantization=quantization, bias=bias)
