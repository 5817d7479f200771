"""What every benchmark shares: the machine's card and ceilings, the tests that must pass first, the closing JSON."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def require_green(tests: Sequence[str]) -> None:
    """A figure is not reported of code whose tests fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"not measured: the tests are red ({' '.join(tests)})")


def machine_card() -> dict[str, Any]:
    """Processor, threads, versions, commit, and the two ceilings, measured now."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "fp32_gflop_per_s": round(_matmul_flop_per_s() / 1e9),
        "copy_gb_per_s": round(_copy_bytes_per_s() / 1e9, 1),
    }


def finish(results: dict[str, Any]) -> None:
    """The last line is for programs."""
    print(json.dumps(results))


def _matmul_flop_per_s(size: int = 2048) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _seconds(lambda: a @ b)


def _copy_bytes_per_s(count: int = 1 << 26) -> float:
    source, target = torch.ones(count), torch.empty(count)
    return 2 * 4 * count / _seconds(lambda: target.copy_(source))


def _seconds(work: Any, repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]
