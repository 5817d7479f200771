"""Two GPUs train what one trains, but for bf16's rounding, and go on to the bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from train.material import write_shards

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
STEPS = 12


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Books of which rows hold several."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("train", "validation"):
        write_shards(folder / name, num_books=40, sentences=4)
    return folder


def write_recipe(shards: Path, out: Path, **changes: Any) -> Path:
    """With all that MPT-7B's finetuning has, but its size."""
    recipe = {
        "train_shards": str(shards / "train"),
        "validation_shards": str(shards / "validation"),
        "out": str(out),
        "steps": STEPS,
        "context_tokens": 512,
        "batch_tokens": 4096,
        "micro_batch_tokens": 1024,
        "model": {"size": "tiny", "set": {"d_model": 256, "n_heads": 4, "attn_config": {"clip_qkv": 1.0}}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "memory": {"checkpointing": "selective", "mlp_tile_tokens": 128},
        "epsilon": 1e-6,
        "warmup_steps": 2,
        "evaluate_tokens": 1024,
        "save_every_steps": STEPS // 2,
        "device": "cuda",
    } | changes
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def train(recipe: Path, *, processes: int) -> list[float]:
    """The losses of all steps that its log knows."""
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *start, "epilogue.train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    log = Path(json.loads(recipe.read_text())["out"]) / "log.jsonl"
    return [entry["loss"] for line in log.read_text().splitlines() if "loss" in (entry := json.loads(line))]


@pytest.fixture(scope="module")
def alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train(write_recipe(packed, tmp_path_factory.mktemp("alone") / "run"), processes=1)


@pytest.mark.parametrize("parallel", [{"shard": 2}, {"context": 2}], ids=str)
def test_two_gpus_train_what_one_trains(
    packed: Path, alone: list[float], tmp_path: Path, parallel: dict[str, int]
) -> None:
    recipe = write_recipe(packed, tmp_path / "run", parallel=parallel)
    found = train(recipe, processes=2)
    assert len(found) == len(alone) == STEPS
    assert alone[-1] < 0.7 * alone[0]
    assert found == pytest.approx(alone, rel=1e-2)
    shutil.rmtree(tmp_path / f"run/step-{STEPS:07d}")
    again = train(recipe, processes=2)
    assert again[STEPS:] == found[STEPS // 2 :], "gone on with from the step in the middle, to the bit"
