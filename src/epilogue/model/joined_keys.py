"""Attention over keys that somebody else keeps: one whole tensor a layer, as transformers' caches have them."""

from collections.abc import Callable

from torch import Tensor

from epilogue.kernels.attention import Backend, attention


class JoinedKeys:
    """A past that is joined with the new tokens outside, and may begin later in some sequences than in others.

    Args:
        join: takes a layer's number and its new k_BTKD and v_BTKD; gives all k_BSKD and v_BSKD, the new ones last.
        document_start_BT: for every new token the first position that it sees, int64: where a sequence that is padded
            on the left begins. None: all see everything before them.
    """

    def __init__(
        self, join: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]], document_start_BT: Tensor | None
    ) -> None:
        self._join = join
        self._document_start_BT = document_start_BT

    def clips(self, x_BTC: Tensor) -> bool:
        """Never."""
        return False

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
        """Have a layer's new keys and values joined to the others, and attend from their tokens; out_BTHD."""
        k_BSKD, v_BSKD = self._join(layer, k_BTKD, v_BTKD)
        start_BT = self._document_start_BT
        if start_BT is not None:
            start_BT = start_BT.to(q_BTHD.device)  # layers may lie on several devices
        return attention(
            q_BTHD, k_BSKD, v_BSKD, slopes_H, scale=scale, document_start_BT=start_BT, backend=backend
        )  # fmt: skip
