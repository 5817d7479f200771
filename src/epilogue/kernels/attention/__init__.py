"""Causal ALiBi attention for prefill, decode and training."""

from epilogue.kernels.attention.op import Backend, attention

__all__ = ["Backend", "attention"]
