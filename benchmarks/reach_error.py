"""What reach leaves out of a real reading: shares visited, masses certified, and how far the logits move.

    python -m benchmarks.reach_error --book novel.txt

Reads the first tokens of a book with and without reach, in fp32 and in fp64, and prints a table and one line of JSON.
The yardstick of the logits' movement is fp32's own error, which the same run measures. Tests of the plans run first.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint, load_tokenizer
from epilogue.model import MPT, blocks
from epilogue.model.reach import ReachPlan
from epilogue.text import read_book

ROOT = Path(__file__).parents[1]
TESTS = ["tests/model/test_reach.py", "tests/kernels/attention/test_plans.py"]
BUNDLED = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"


@dataclass
class Reading:
    """The final norm's output for every token, and what attention did on the way."""

    x_TC: Tensor
    seconds: float
    plans: list[ReachPlan] = field(default_factory=list)

    def share_visited(self) -> Tensor:
        """By layer and head, as [L, H]."""
        counts = [plan.visited() for plan in self.plans]
        return torch.stack([visited_H / dense for visited_H, dense in counts])

    def certified_mass(self) -> Tensor:
        """The largest of any tile, by layer and head, as [L, H]."""
        return torch.stack([plan.omitted_mass_HN.amax(dim=1) for plan in self.plans])


@contextmanager
def plans_kept() -> Iterator[list[ReachPlan]]:
    """Every plan the model makes meanwhile, layer after layer."""
    kept: list[ReachPlan] = []
    make = blocks.plan_reach

    def make_and_keep(*args: Any, **kwargs: Any) -> ReachPlan:
        kept.append(make(*args, **kwargs))
        return kept[-1]

    with patch.object(blocks, "plan_reach", make_and_keep):
        yield kept


def read(model: MPT, ids_1T: Tensor, *, epsilon: float) -> Reading:
    model.set_epsilon(epsilon)
    start = time.perf_counter()
    with plans_kept() as plans:
        x_TC = model.transformer(ids_1T)[0]
    return Reading(x_TC, time.perf_counter() - start, plans)


def differences(model: MPT, truth: Reading, other: Reading) -> dict[str, float]:
    """Of two readings' logits, by an fp64 head: the largest difference, its root mean square, changed winners."""
    model, largest, squares, num_changed = model.double(), 0.0, 0.0, 0
    for a_TC, b_TC in zip(truth.x_TC.double().split(1000), other.x_TC.double().split(1000), strict=True):
        a_TV, b_TV = model.head(a_TC), model.head(b_TC)
        largest = max(largest, (a_TV - b_TV).abs().max().item())
        squares += (a_TV - b_TV).square().mean(dim=1).sum().item()
        num_changed += int((a_TV.argmax(1) != b_TV.argmax(1)).sum())
    return {"largest": largest, "rms": (squares / len(truth.x_TC)) ** 0.5, "changed_winners": num_changed}


@torch.inference_mode()
def measure(book: Path, num_tokens: int, epsilon: float) -> dict[str, Any]:
    readings = {}
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        checkpoint = load_checkpoint(BUNDLED, dtype=dtype)
        ids = load_tokenizer(checkpoint.directory, checkpoint.config).encode(read_book(book).text)[:num_tokens]
        for used in (0.0, epsilon):
            readings[name, used] = read(checkpoint.model, torch.tensor([ids]), epsilon=used)
    model, reach = checkpoint.model, readings["fp64", epsilon]
    return {
        "num_tokens": len(ids),
        "epsilon": epsilon,
        "share_visited_LH": reach.share_visited().tolist(),
        "certified_mass_LH": reach.certified_mass().tolist(),
        "slopes_H": model.transformer.blocks[0].attn.slopes_H.tolist(),
        "fp64_reach": differences(model, readings["fp64", 0.0], reach),
        "fp32_reach": differences(model, readings["fp32", 0.0], readings["fp32", epsilon]),
        "fp32_rounding": differences(model, readings["fp64", 0.0], readings["fp32", 0.0]),
        "fp32_reach_and_rounding": differences(model, readings["fp64", 0.0], readings["fp32", epsilon]),
        "seconds": {f"{name}, epsilon {used:g}": reading.seconds for (name, used), reading in readings.items()},
    }


def show(result: dict[str, Any]) -> None:
    share_LH, mass_LH = torch.tensor(result["share_visited_LH"]), torch.tensor(result["certified_mass_LH"])
    print("\n| head | slope | share visited, least and most of the layers | largest certified mass |")
    print("| ---: | ---: | ---: | ---: |")
    for head, slope in enumerate(result["slopes_H"]):
        least, most = share_LH[:, head].min(), share_LH[:, head].max()
        print(f"| {head} | {slope:.4g} | {least:.2%}, {most:.2%} | {mass_LH[:, head].max():.1e} |")
    print(f"| all | | {share_LH.mean():.2%} | {mass_LH.max():.1e} |")
    print("\n| logits (head in fp64) | largest difference | root mean square | most likely token changed |")
    print("| --- | ---: | ---: | ---: |")
    for name, label in (
        ("fp64_reach", "fp64, with reach against without"),
        ("fp32_reach", "fp32, with reach against without"),
        ("fp32_rounding", "fp32 against fp64, without reach"),
        ("fp32_reach_and_rounding", "fp32 with reach against fp64 without"),
    ):
        row = result[name]
        print(f"| {label} | {row['largest']:.1e} | {row['rms']:.1e} | {row['changed_winners']} |")
    print("\nseconds:", ", ".join(f"{name}: {seconds:.1f}" for name, seconds in result["seconds"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--book", type=Path, default=BUNDLED.parent / "a-life-in-being.txt")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--epsilon", type=float, default=1e-6)
    options = parser.parse_args()
    subprocess.run([sys.executable, "-m", "pytest", *TESTS], cwd=ROOT, check=True)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    result = measure(options.book, options.tokens, options.epsilon)
    show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
