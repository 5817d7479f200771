"""What becomes of a product: small things that the kernel of few rows does by the way, and others one by one."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ending:
    """Done in this order."""

    clip: float | None = None
    """Numbers are clamped to -clip..clip."""
    onto_RO: Tensor | None = None
    """What the result is added to; of the product's dtype."""

    @property
    def requires_grad(self) -> bool:
        """Whether what it is added to does."""
        return self.onto_RO is not None and self.onto_RO.requires_grad


NO_ENDING = Ending()


def finish(out: Tensor, ending: Ending) -> Tensor:
    """The ending by PyTorch's operators, for products of any shape (what they are added to has the same)."""
    if ending.clip is not None:
        out = out.clamp(-ending.clip, ending.clip)
    return out if ending.onto_RO is None else ending.onto_RO + out
