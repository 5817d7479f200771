"""How much memory this process has taken at its worst moment."""

import sys

import psutil
import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Largest resident memory of the process, or largest allocation on an accelerator that keeps count."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # exists on POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
