"""Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685): small trainable detours around frozen linear layers."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.model.linear import Linear, QuantLinear


class LowRankAdapter(nn.Module):
    """x to scale * up(down(dropout(x))), in the dtype of x; its weights are fp32 and begin as a detour of zero."""

    def __init__(self, in_features: int, out_features: int, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    def init_weights(self, generator: torch.Generator) -> None:
        """The way down as PEFT draws it, the way up zero: nothing changes before something is learned."""
        with torch.no_grad():
            bound = 1 / math.sqrt(self.down.shape[1])
            self.down.uniform_(-bound, bound, generator=generator)
            self.up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        narrow = F.linear(self.dropout(x), self.down.to(x.dtype))
        return F.linear(narrow, self.up.to(x.dtype)) * self.scale

    def delta_OI(self) -> Tensor:
        """What it adds to the layer's weight, fp32."""
        return self.up.float() @ self.down.float() * self.scale


def add_adapters(
    model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str], dropout: float = 0.0, seed: int = 0
) -> None:
    """Freeze a model and give these layers of every block adapters, on the device of the model.

    Args:
        model: dense or quantised; has no adapters yet.
        rank: width of the detours.
        alpha: they are multiplied by alpha / rank.
        targets: of Wqkv, out_proj, up_proj and down_proj.
        dropout: of what enters a detour.
        seed: of the first weights, which are the same on every device.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    for name, layer in model.named_modules():
        if isinstance(layer, Linear | QuantLinear) and name.rpartition(".")[2] in targets:
            adapter = LowRankAdapter(
                layer.in_features, layer.out_features, rank=rank, scale=alpha / rank, dropout=dropout
            )
            adapter.init_weights(generator)
            layer.adapter = adapter.to(device)


def adapters(model: nn.Module) -> Iterator[tuple[str, LowRankAdapter]]:
    """Every adapter with the name of its layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, Linear | QuantLinear) and isinstance(layer.adapter, LowRankAdapter):
            yield name, layer.adapter
