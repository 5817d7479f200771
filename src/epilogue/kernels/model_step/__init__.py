"""A whole model's pass over a few new tokens of some texts in one call. Its oracle is ``model.MPT`` itself."""

from epilogue.kernels.model_step.native import StepModel, StepResults
from epilogue.kernels.model_step.weights import (
    BlockWeights,
    LinearWeights,
    ModelWeights,
    NormWeights,
    StepBounds,
    TextTable,
)

__all__ = [
    "BlockWeights",
    "LinearWeights",
    "ModelWeights",
    "NormWeights",
    "StepBounds",
    "StepModel",
    "StepResults",
    "TextTable",
]
