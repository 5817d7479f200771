"""What stands around attention where a process holds a part of every sequence; the model knows no more of processes."""

from typing import Protocol

from torch import Tensor


class HeadExchange(Protocol):
    """All tokens of some heads, in exchange for some tokens of all heads."""

    heads: list[int]
    """Those whose attention is computed here."""

    def to_heads(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this process's tokens to those of its heads."""

    def to_tokens(self, out_BTHD: Tensor) -> Tensor:
        """The way back, for what the heads have gathered."""
