"""The stream of residuals between the layers of a pass without gradients: who adds what to it, and when.

A quantised layer adds the stream where its product ends. A dense one leaves that to the norm that follows, which on a
GPU does it by the way: a step of few tokens is bound by its launches, sums of many by what they read and write. The
sum is rounded the same wherever it is made.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from epilogue.kernels.layer_norm import MOST_ROWS
from epilogue.kernels.quant_linear import NO_ENDING, Ending
from epilogue.model.linear import QuantLinear
from epilogue.model.norms import LayerNorm


class Stream(NamedTuple):
    """What goes from layer to layer. A tuple, since hooks on blocks look for tensors in those."""

    x_BTC: Tensor
    term_BTC: Tensor | None = None
    """Still to be added."""

    @property
    def sum_BTC(self) -> Tensor:
        """All of it."""
        return self.x_BTC if self.term_BTC is None else self.x_BTC + self.term_BTC

    def normed(self, norm: nn.Module) -> tuple["Stream", Tensor]:
        """The stream with nothing left to add, and its norm."""
        if self.term_BTC is not None and isinstance(norm, LayerNorm):
            sum_BTC, normed_BTC = norm(self.x_BTC, self.term_BTC)
        else:
            sum_BTC = self.sum_BTC
            normed_BTC = norm(sum_BTC)
        return Stream(sum_BTC), normed_BTC

    def ending_of(self, layer: nn.Module) -> Ending:
        """What a layer whose product belongs to the stream is to do with it."""
        return Ending(onto_RO=self.x_BTC) if isinstance(layer, QuantLinear) else NO_ENDING

    def plus(self, product_BTC: Tensor, ending: Ending) -> "Stream":
        """The stream with a product that ended so."""
        return Stream(self.x_BTC, product_BTC) if ending.onto_RO is None else Stream(product_BTC)


def lets_terms_wait(x_BTC: Tensor) -> bool:
    """Whether terms may wait from block to block: on a CPU those of many rows would keep memory for nothing."""
    return not torch.is_grad_enabled() and (x_BTC.is_cuda or x_BTC.shape[:-1].numel() <= MOST_ROWS)


def picked(x: Tensor, tokens: Sequence[slice] | None) -> Tensor:
    """Those tokens of a stream or of queries, [B, T, ...], one behind the other; all if None."""
    if tokens is None:
        return x
    if len(tokens) == 1:
        return x[:, tokens[0]]
    return torch.cat([x[:, :0], *(x[:, some] for some in tokens)], dim=1)
