"""What the model asks of whatever stands before its new tokens."""

from typing import Protocol

from torch import Tensor

from epilogue.kernels.attention import Backend


class Lookback(Protocol):
    """What attention asks: takes in a layer's new keys and values and looks back. ``JoinedKeys`` does no more."""

    def attend(
        self,
        layer: int,
        q_BTHD: Tensor,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        slopes_H: Tensor,
        *,
        scale: float,
        backend: Backend | None = None,
    ) -> Tensor:
        """Take in a layer's new keys and values, and attend from their tokens; out_BTHD."""

    def clips(self, x_BTC: Tensor) -> bool:
        """Whether ``attend`` clamps queries, keys and values of this dtype and device, and nobody else need."""


class Past(Lookback, Protocol):
    """What a whole pass asks: ``KVCache`` for any tokens, ``TokenStep`` for one each."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest sequence behind this pass."""

    @property
    def wanted(self) -> list[slice] | None:
        """The tokens whose results anybody wants; None if all are. The last layer computes no others."""

    def positions(self) -> Tensor:
        """positions_BT of the new tokens, for a model that has learned them."""
