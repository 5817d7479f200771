"""Two GPUs train what one trains, but for bf16's rounding, and go on to the bit.

Run as a module this is what torchrun starts: all layouts one after the other, since processes and kernels take longer
to come up than to train so little.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from epilogue.train import ModelRecipe, OptimizerRecipe, ParallelRecipe, Progress, Recipe, Trainer, joined_processes
from epilogue.train.recipe_parts import MemoryRecipe
from train.material import tiny_recipe, write_shards

STEPS = 12
LAYOUTS = {
    1: {"alone": ParallelRecipe()},
    2: {"shard": ParallelRecipe(shard=2), "context": ParallelRecipe(context=2)},
}


def recipe_for(shards: Path, out: Path, **changes: Any) -> Recipe:
    """With all that MPT-7B's finetuning has, but its size; of rows several books."""
    return tiny_recipe(
        shards, out, steps=STEPS, context_tokens=512, batch_tokens=4096, micro_batch_tokens=1024,
        model=ModelRecipe(size="tiny", set={"d_model": 256, "n_heads": 4, "attn_config": {"clip_qkv": 1.0}}),
        optimizer=OptimizerRecipe(name="adamw", learning_rate=1e-3),
        memory=MemoryRecipe(checkpointing="selective", mlp_tile_tokens=128),
        epsilon=1e-6, save_every_steps=STEPS // 2, evaluate_tokens=1024, **changes,
    )  # fmt: skip


def losses_of(recipe: Recipe) -> list[float]:
    """Of the steps that are still to be taken; the first process knows them."""
    seen: list[Progress] = []
    Trainer(recipe).run(on_step=seen.append)
    return [progress.loss for progress in seen]


def main(folder: Path, device: str) -> None:
    found = {}
    with joined_processes(device):
        for name, parallel in LAYOUTS[int(os.environ.get("WORLD_SIZE", "1"))].items():
            recipe = recipe_for(folder, folder / name, device=device, parallel=parallel)
            losses = losses_of(recipe)
            if losses:
                shutil.rmtree(folder / name / f"step-{STEPS:07d}")
            found[name] = {"losses": losses, "again": losses_of(recipe)}
    if found["alone" if "alone" in found else "shard"]["losses"]:
        print(json.dumps(found))


def trained_on(folder: Path, *, processes: int, device: str = "cuda") -> Any:
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    path = os.pathsep.join(["src", "tests", *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", *start, "train.test_parallel_gpu", str(folder), device],
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.gpu
def test_two_gpus_train_what_one_trains(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for name in ("train", "validation"):
        write_shards(tmp_path / name, num_books=40, sentences=4)
    alone, found = trained_on(tmp_path, processes=1)["alone"], trained_on(tmp_path, processes=2)
    assert len(alone["losses"]) == STEPS
    assert alone["losses"][-1] < 0.7 * alone["losses"][0]
    for run in (alone, found["shard"], found["context"]):
        assert run["losses"] == pytest.approx(alone["losses"], rel=1e-2)
        assert run["again"] == run["losses"][STEPS // 2 :], "gone on with from the step in the middle, to the bit"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
