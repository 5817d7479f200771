"""Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675): steps of one size, by sign."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from epilogue.train.optimizers.eight_bits import Kind
from epilogue.train.optimizers.elementwise import Elementwise


class Lion(Elementwise):
    """Every weight moves by lr, against the sign of a mixture of gradient and momentum; one moment a weight.

    Args:
        params: see ``Elementwise``.
        lr: some 3 to 10 times smaller than AdamW's.
        betas: of the momentum in the step, and of the momentum that is kept.
        weight_decay: some 3 to 10 times larger than AdamW's.
        settings: of ``Elementwise``.
    """

    moments: ClassVar[dict[str, Kind]] = {"exp_avg": "signed"}

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=betas, **settings)

    def move(
        self, weight: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        """One tensor's step."""
        (beta_1, beta_2), momentum = group["betas"], moments["exp_avg"]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(momentum.lerp(gradient, 1 - beta_1).sign_(), alpha=-group["lr"])
        momentum.lerp_(gradient, 1 - beta_2)
