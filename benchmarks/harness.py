"""What every benchmark shares: the machine's card and ceilings, the tests that must pass first, the closing JSON."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from epilogue.evals import machine_facts, measure_ceilings

ROOT = Path(__file__).parents[1]


def require_green(tests: Sequence[str]) -> None:
    """A figure is not reported of code whose tests fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"not measured: the tests are red ({' '.join(tests)})")


def machine_card() -> dict[str, Any]:
    """Processor, threads, versions, commit, and the ceilings in fp32, measured now."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpu = torch.device("cpu")
    return {**machine_facts(cpu, measure_ceilings(cpu, torch.float32)), "commit": commit.stdout.strip()}


def finish(results: dict[str, Any]) -> None:
    """The last line is for programs."""
    print(json.dumps(results))
