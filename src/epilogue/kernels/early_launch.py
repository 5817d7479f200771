"""Kernels that begin before those ahead of them are through (NVIDIA's programmatic dependent launch, from Hopper on).

A kernel that allows it says early that the next one may come (``gdc_launch_dependents``). A kernel launched with
``launch_pdl`` then fetches what nobody writes, and waits (``gdc_wait``) before it touches anything else: the wait ends
when all kernels ahead have ended and their results are there.
"""

from functools import lru_cache

import torch


@lru_cache(maxsize=8)
def allows_early_launch(device: torch.device) -> bool:
    """Whether the device knows of it."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
