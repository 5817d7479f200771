"""Optimizers of our own: for states of 8 bits, bf16 weights and matrices in parts, which PyTorch's have not."""

from epilogue.train.optimizers.adamw import NarrowAdamW
from epilogue.train.optimizers.elementwise import Elementwise, NarrowWeights
from epilogue.train.optimizers.lion import Lion
from epilogue.train.optimizers.muon import Muon

__all__ = ["Elementwise", "Lion", "Muon", "NarrowAdamW", "NarrowWeights"]
