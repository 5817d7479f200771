"""What one GPU does during some work, kernel by kernel, and how long it waits: an option of the shapes' benchmarks."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_MOST_ROWS = 40


def kernel_times(work: Callable[[], object], *, repeats: int) -> dict[str, Any]:
    """Milliseconds of one of ``repeats`` runs of some work, busy and idle; prints the kernels that take longest."""
    torch.cuda.synchronize()
    # Kernels alone: what watches the host slows it.
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    spans = [
        (x.time_range.start, x.time_range.end, x.name)
        for x in watched.events() or []
        if x.device_type == DeviceType.CUDA and x.time_range.end > x.time_range.start
    ]
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    for start, end, name in spans:
        by_name[name].append(end - start)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:_MOST_ROWS]
    for name, times_us in longest:
        print(f"{sum(times_us) / 1e3 / repeats:9.2f} ms {len(times_us) / repeats:7.1f} launches  {name[:110]}")
    gaps_us = idle_us(sorted((start, end) for start, end, _ in spans))
    whole_us = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
    row = {
        "whole_ms": round(whole_us / 1e3 / repeats, 1),
        "idle_ms": round(sum(gaps_us) / 1e3 / repeats, 2),
        "longest_waits_ms": [round(gap / 1e3, 2) for gap in sorted(gaps_us, reverse=True)[:5]],
    }
    print(row, flush=True)
    return row


def idle_us(spans: list[tuple[float, float]]) -> list[float]:
    """Gaps in which none of the spans, sorted by their start, is running."""
    gaps, busy_until = [], spans[0][1]
    for start, end in spans[1:]:
        if start > busy_until:
            gaps.append(start - busy_until)
        busy_until = max(busy_until, end)
    return gaps
