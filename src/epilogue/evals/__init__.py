"""How good a model is on books it has not seen."""

from epilogue.evals.loss_by_position import LossByPosition, loss_by_position, token_losses

__all__ = ["LossByPosition", "loss_by_position", "token_losses"]
