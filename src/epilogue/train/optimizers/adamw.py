"""AdamW (Loshchilov & Hutter, arXiv 1711.05101) for what PyTorch's cannot: 8-bit moments and bf16 weights."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from epilogue.train.optimizers.eight_bits import Kind
from epilogue.train.optimizers.elementwise import Elementwise


class NarrowAdamW(Elementwise):
    """PyTorch's AdamW, to rounding, where moments have 32 bits.

    Args:
        params: see ``Elementwise``.
        lr: learning rate.
        betas: of the averages of gradients and of their squares.
        eps: added to the root of the latter.
        weight_decay: see ``Elementwise``.
        settings: of ``Elementwise``.
    """

    moments: ClassVar[dict[str, Kind]] = {"exp_avg": "signed", "exp_avg_sq": "unsigned"}

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, **settings)

    def move(
        self, weight: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        """One tensor's step."""
        beta_1, beta_2 = group["betas"]
        mean, square = moments["exp_avg"], moments["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta_1)
        square.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        root = (square / (1 - beta_2**step)).sqrt_().add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta_1**step))
