"""What the C library keeps of freed memory, given back to the system."""

import ctypes
import sys
import time

GIVE_BACK_EVERY_S = 10.0
"""Giving back 100 MiB and touching them again takes some 50 ms."""


def give_back_free_memory() -> bool:
    """Whether anything was given back; only glibc knows how (``malloc_trim(3)``), elsewhere nothing is done.

    A pass's buffers of many sizes leave holes between what lives longer. glibc gives back by itself only what lies at
    the end of its heaps, so under load the holes grow by tens of MiB a minute (benchmarks/results).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


class GiveBack:
    """Gives free memory back now and then."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def if_due(self) -> None:
        """Every GIVE_BACK_EVERY_S, for whoever asks more often."""
        if time.monotonic() - self._last_s >= GIVE_BACK_EVERY_S:
            give_back_free_memory()
            self._last_s = time.monotonic()
