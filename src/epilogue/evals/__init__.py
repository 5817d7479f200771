"""How good a model is on books it has not seen, and how fast it reads and writes."""

from epilogue.evals.context_ablation import ContextAblation, ContextRow, context_ablation
from epilogue.evals.loss_by_position import LossByPosition, loss_by_position, token_losses
from epilogue.evals.machine import Ceilings, machine_facts, measure_ceilings, measure_flop_per_s
from epilogue.evals.speed import Growth, SpeedRow, growth, measure_speed

__all__ = [
    "Ceilings",
    "ContextAblation",
    "ContextRow",
    "Growth",
    "LossByPosition",
    "SpeedRow",
    "context_ablation",
    "growth",
    "loss_by_position",
    "machine_facts",
    "measure_ceilings",
    "measure_flop_per_s",
    "measure_speed",
    "token_losses",
]
