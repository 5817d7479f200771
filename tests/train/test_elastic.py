"""A worker of torchrun's dies, all are started anew, and the run goes on from its last step."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from epilogue.checkpoint import load_checkpoint
from epilogue.train import Recipe, Trainer, joined_processes
from train.material import tiny_recipe
from train.processes import on_processes

RECIPE = """
train_shards: {shards}/train
validation_shards: {shards}/validation
out: {out}
steps: 6
context_tokens: 16
batch_tokens: 128
micro_batch_tokens: 64
model: {{size: tiny, set: {{d_model: 32}}}}
optimizer: {{learning_rate: 1.0e-2}}
warmup_steps: 2
evaluate_tokens: 64
save_every_steps: 2
device: cpu
"""


def recipe_for(shards: Path, out: Path) -> Recipe:
    return tiny_recipe(shards, out, steps=6, micro_batch_tokens=64, save_every_steps=2)


def train(recipe: Recipe) -> None:
    Trainer(recipe).run()


def assert_same_weights(run: Path, other: Path) -> None:
    one, wanted = (load_checkpoint(folder / "step-0000006").model.state_dict() for folder in (run, other))
    assert all(torch.equal(one[name], wanted[name]) for name in wanted)


def train_and_die_once(recipe: Recipe) -> int:
    """What torchrun starts: the second process dies at the fifth step of the first attempt."""
    with joined_processes("cpu"):
        trainer = Trainer(recipe)
        began = trainer.step
        if dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            real = trainer._train_step
            trainer._train_step = lambda batch: (
                os.kill(os.getpid(), signal.SIGKILL) if trainer.step == 4 else real(batch)
            )  # type: ignore
        trainer.run()
    return began


def test_torchruns_agent_restarts_the_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    agent = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", max_restarts=1, monitor_interval=0.05,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver", local_addr="localhost",
    )  # fmt: skip
    recipe = recipe_for(shards, tmp_path / "run")
    began = elastic_launch(agent, train_and_die_once)(recipe)
    assert set(began.values()) <= {2, 4}
    assert 0 not in began.values()
    on_processes(2, train, replace(recipe, out=str(tmp_path / "whole")), folder=tmp_path)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_itself(shards: Path, tmp_path: Path) -> None:
    """The whole command, for two processes that share sequences; one of them speaks."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(shards=shards, out=tmp_path / "run"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "epilogue.train", str(tmp_path / "recipe.yaml"), "--set", "parallel.context=2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "run/step-0000006")]
    assert "2 x cpu (replicate 1, shard 1, context 2)" in done.stderr
