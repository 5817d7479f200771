"""A loss far above what it was is left out and counted; one that stays there ends the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epilogue.errors import TrainingError
from epilogue.train import OptimizerRecipe, Progress, Recipe, Trainer
from epilogue.train.spikes import SpikeGuard
from train.material import assert_same_state, state_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("ctrl_c")


def experienced(most_z: float | None = 5.0) -> SpikeGuard:
    guard = SpikeGuard(most_z)
    noise = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 0.1 + 3
    for loss in noise.tolist():
        guard.z_of_spike(loss)
    return guard


def test_noise_is_no_spike_and_a_spike_is_measured() -> None:
    guard = experienced()
    assert guard.num_skipped == 0
    z = guard.z_of_spike(4.0)
    assert z == pytest.approx(10, rel=0.3)
    assert guard.z_of_spike(3.1) is None
    assert guard.z_of_spike(0.1) is None, "a loss may fall as far as it likes"
    assert guard.num_skipped == 1


def test_a_spike_does_not_count() -> None:
    guard = experienced()
    assert [guard.z_of_spike(9.0) for _ in range(5)] == [guard.z_of_spike(9.0)] * 5


def test_at_first_and_without_a_threshold_nothing_is_left_out() -> None:
    guard = SpikeGuard(3.0)
    assert [guard.z_of_spike(loss) for loss in (3.0, 3.0, 900.0)] == [None] * 3
    assert experienced(None).z_of_spike(900.0) is None


def test_a_loss_that_hardly_moves_is_not_hair_triggered() -> None:
    guard = SpikeGuard(5.0)
    for _ in range(100):
        guard.z_of_spike(2.0)
    assert guard.z_of_spike(2.005) is None
    assert guard.z_of_spike(2.1) is not None


def test_what_stays_is_no_spike() -> None:
    guard = experienced()
    for _ in range(19):
        guard.z_of_spike(9.0)
    with pytest.raises(TrainingError, match=r"loss has stayed above 3\.\d+ for 20 steps, which is no spike; remove"):
        guard.z_of_spike(9.0)


def test_it_knows_what_another_knew() -> None:
    one, other = experienced(), SpikeGuard(5.0)
    one.z_of_spike(9.0)
    other.load(json.loads(json.dumps(one.state())))
    losses = [3.0, 4.0, 2.9, 3.4, 9.0]
    assert [one.z_of_spike(x) for x in losses] == [other.z_of_spike(x) for x in losses]
    assert one.state() == other.state()


def spoiled(recipe: Recipe, *, at: int) -> Trainer:
    """A trainer whose batch of this step is a bad one."""
    trainer = Trainer(recipe)
    real = trainer.model.loss

    def loss(*batch: Tensor) -> Tensor:
        return real(*batch) * (50 if trainer.step + 1 == at else 1)

    trainer._loss = loss
    return trainer


def guarded(shards: Path, out: Path, **changes: Any) -> Recipe:
    optimizer = OptimizerRecipe(name="lion", learning_rate=1e-3, spike_z=8.0)
    return tiny_recipe(shards, out, steps=60, optimizer=optimizer, **changes)


def test_the_step_is_left_out_logged_and_counted(shards: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    trainer = spoiled(guarded(shards, tmp_path), at=55)
    weights: dict[int, Tensor] = {}

    def on_step(progress: Progress) -> None:
        seen.append(progress)
        weights[progress.step] = trainer.model.transformer.wte.weight.detach().clone()

    trainer.run(on_step=on_step)
    assert torch.equal(weights[54], weights[55])
    assert not torch.equal(weights[55], weights[56])
    assert [progress.num_skipped for progress in seen] == [0] * 54 + [1] * 6
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (skipped,) = (line for line in lines if "skipped_z" in line)
    assert (skipped["step"], skipped["num_skipped"]) == (55, 1)
    assert skipped["skipped_z"] > 8


@pytest.mark.parametrize("at", [54, 55])
def test_gone_on_with_it_remembers(shards: Path, tmp_path: Path, at: int) -> None:
    recipe = guarded(shards, tmp_path / "cut")

    def stop(progress: Progress) -> None:
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoiled(recipe, at=55).run(on_step=stop)
    cut, whole = spoiled(recipe, at=55), spoiled(replace(recipe, out=str(tmp_path / "whole")), at=55)
    cut.run()
    whole.run()
    assert cut._guard.num_skipped == 1
    assert cut._guard.state() == whole._guard.state()
    assert_same_state(state_of(cut), state_of(whole))
