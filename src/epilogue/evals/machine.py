"""What a machine can do at best, measured now: the ceilings that speeds are held against."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

Clock = Callable[[], float]
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Of one device, at the number of threads in use."""

    flop_per_s: float
    """Of large matrix products in ``dtype``; a multiply-add counts twice."""
    dtype: str
    """Of the products."""
    read_bytes_per_s: float
    """Of memory that is read and not written: what a new token is limited by."""


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of a few tries each; some seconds and 256 MiB of memory on a CPU, 1 GiB on a GPU.

    Reading is the faster of a sum and a dot product: PyTorch has no other way to read only, and neither is the faster
    one at every number of threads.
    """
    x = torch.ones(1 << (28 if device.type == "cuda" else 26), device=device)
    read_s = min(_fastest_s(x.sum, device), _fastest_s(lambda: x.dot(x), device))
    return Ceilings(
        flop_per_s=measure_flop_per_s(device, dtype),
        dtype=str(dtype).removeprefix("torch."),
        read_bytes_per_s=x.nbytes / read_s,
    )


def measure_flop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products, the best of a few; well under a second."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _fastest_s(lambda: a @ b, device)


def machine_facts(device: torch.device, ceilings: Ceilings) -> dict[str, Any]:
    """Processor, threads, versions, date and ceilings, as one writes them beside a figure."""
    load = {"load": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}
    is_cuda = device.type == "cuda"
    return {
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **load,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **asdict(ceilings),
    }


def clock_of(device: torch.device) -> Clock:
    """A clock that first waits for what the device has been given to do."""

    def now_s() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    return now_s


def _fastest_s(work: Callable[[], Any], device: torch.device) -> float:
    now_s = clock_of(device)
    work()
    times = []
    for _ in range(_REPEATS):
        start_s = now_s()
        work()
        times.append(now_s() - start_s)
    return min(times)
