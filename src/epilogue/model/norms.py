"""The norms of this architecture."""

import torch
from torch import Tensor, nn

from epilogue.kernels.layer_norm import layer_norm, sum_layer_norm
from epilogue.model.config import MPTConfig


class RMSNorm(nn.Module):
    """x over its root mean square, computed in fp32, times a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Normalise the last axis; the dtype is kept."""
        wide = x_BTC if x_BTC.dtype == torch.float64 else x_BTC.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return scaled.to(x_BTC.dtype) * self.weight


class LayerNorm(nn.LayerNorm):
    """PyTorch's, through ``kernels.layer_norm``, which knows faster ways on a GPU."""

    def forward(  # type: ignore[override]
        self, x_BTC: Tensor, term_BTC: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise the last axis, the dtype is kept; with a term, x and the term's sum and the norm of that.

        One call for both: hooks on a norm bring its weights in.
        """
        if term_BTC is not None:
            return sum_layer_norm(x_BTC, term_BTC, self.weight, self.bias, eps=self.eps)
        return layer_norm(x_BTC, self.weight, self.bias, eps=self.eps)


def make_norm(config: MPTConfig, width: int) -> nn.Module:
    """The norm of this architecture.

    The low_precision kinds differ from the plain ones only under autocast, which is not used here.
    """
    if config.norm_type in ("rmsnorm", "low_precision_rmsnorm"):
        return RMSNorm(width, config.norm_eps)
    return LayerNorm(width, eps=config.norm_eps, bias=not config.no_bias)
