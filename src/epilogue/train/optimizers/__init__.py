"""Optimizers of our own: for states of 8 bits and for bf16 weights, which PyTorch's have not."""

from epilogue.train.optimizers.adamw import NarrowAdamW
from epilogue.train.optimizers.elementwise import Elementwise, NarrowWeights
from epilogue.train.optimizers.lion import Lion

__all__ = ["Elementwise", "Lion", "NarrowAdamW", "NarrowWeights"]
