"""What stands around attention without a cache; the model knows no more of other processes than this."""

from torch import Tensor


class HeadExchange:
    """A process that has whole sequences and all heads: nothing is exchanged.

    Where processes hold a part of every sequence each, something from outside takes its place: it gives all tokens of
    some heads for some tokens of all heads, and back.
    """

    heads: list[int] | slice = slice(None)
    """Those whose attention is computed here."""

    def to_heads(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this process's tokens to those of its heads."""
        return q_BTHD, k_BTKD, v_BTKD

    def to_tokens(self, out_BTHD: Tensor) -> Tensor:
        """The way back, for what the heads have gathered."""
        return out_BTHD
