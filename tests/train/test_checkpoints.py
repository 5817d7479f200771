"""Steps of a run that is killed, and steps that go from some processes to others."""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint
from epilogue.train import OptimizerRecipe, ParallelRecipe, Progress, Recipe, Trainer, checkpoints
from epilogue.train.checkpoints import _StepWriter
from epilogue.train.moments import moments
from epilogue.train.recipe_parts import LoraRecipe, StageRecipe
from epilogue.train.run_folder import newest_step
from epilogue.train.sharding import whole
from train.material import assert_same_state, lora_recipe, tiny_recipe
from train.processes import Failure, begin, on_processes, outcomes


def whole_state(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.model.state_dict() | moments(trainer.model, trainer.optimizers)
    # gloo sends no int16.
    wide = {name: x.int() if x.dtype == torch.int16 else x for name, x in state.items()}
    return {name: whole(x).detach().clone() for name, x in wide.items()}


def finished(recipe: Recipe) -> dict[str, Tensor]:
    trainer = Trainer(recipe)
    trainer.run()
    return whole_state(trainer)


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_the_second_time(owner: Any, name: str, act: Callable[..., None] = die) -> None:
    """Act before a function is called for the second time."""
    real, times = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        times.append(1)
        if len(times) == 2:
            act()
        return real(*args, **kwargs)

    setattr(owner, name, call)


# Of the second save: before its folder is there, in it with nothing, with all tensors and no more, with everything
# under the wrong name, and under the right one with the older steps not cleared away.
MOMENTS = {
    "begin_folder": checkpoints,
    "write_data": _StepWriter,
    "finish": _StepWriter,
    "publish_folder": checkpoints,
    "drop_old_steps": checkpoints,
}


def train_and_die(recipe: Recipe, moment: str) -> None:
    at_the_second_time(MOMENTS[moment], moment)
    Trainer(recipe).run()


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_amid_a_save_loses_no_more_than_since_the_last_one(shards: Path, tmp_path: Path, moment: str) -> None:
    recipe = tiny_recipe(shards, tmp_path / "killed", steps=7, save_every_steps=2)
    killed = begin(train_and_die, recipe, moment)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    trainer = Trainer(recipe)
    assert trainer.step == (4 if moment == "drop_old_steps" else 2)
    trainer.run()
    assert_same_state(whole_state(trainer), finished(replace(recipe, out=str(tmp_path / "whole"))))
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "log.jsonl",
        "step-0000006",
        "step-0000007",
    ]


def test_kill_9_from_outside(shards: Path, tmp_path: Path) -> None:
    """Whenever it comes; saves follow each other without a pause."""
    endless = tiny_recipe(shards, tmp_path / "killed", steps=10**6, save_every_steps=1, cooldown_share=0.0)
    process = begin(finished, endless)
    while newest_step(tmp_path / "killed") is None:
        process.join(timeout=0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    resumed = Trainer(endless)
    assert resumed.step >= 1
    wanted = finished(replace(endless, steps=resumed.step, out=str(tmp_path / "whole")))
    assert_same_state(whole_state(resumed), wanted)


def train_in_two_and_let_one_die(recipe: Recipe) -> None:
    if torch.distributed.get_rank() == 1:
        at_the_second_time(_StepWriter, "write_data")
    Trainer(recipe).run()


def test_kill_9_of_one_of_two_amid_a_save(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path / "killed", steps=5, save_every_steps=2, micro_batch_tokens=64)
    ended = outcomes(2, train_in_two_and_let_one_die, recipe, folder=tmp_path)
    assert all(isinstance(end, Failure) for end in ended)
    assert newest_step(tmp_path / "killed") == tmp_path / "killed/step-0000002"
    whole_run = replace(recipe, out=str(tmp_path / "whole"))
    (resumed, uninterrupted), _ = on_processes(2, finish_both, recipe, whole_run, folder=tmp_path)
    assert_same_state(resumed, uninterrupted)


def finish_both(one: Recipe, other: Recipe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return finished(one), finished(other)


def cut(recipe: Recipe, *, at: int) -> None:
    """A run that is stopped by a Ctrl-C that comes to one process only."""
    trainer = Trainer(recipe)
    real = trainer.optimizers[0].step

    def step() -> None:
        real()
        if trainer.step + 1 == at and trainer.mesh.rank == trainer.mesh.size - 1:
            signal.raise_signal(signal.SIGINT)

    trainer.optimizers[0].step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.step == at


def losses_of(recipe: Recipe) -> list[float]:
    seen: list[Progress] = []
    Trainer(recipe).run(on_step=seen.append)
    return [progress.loss for progress in seen]


def elsewhere(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, out=f"{recipe.out}-{name}")


def in_two(recipes: dict[str, Recipe], moved: Recipe) -> tuple[dict[str, Any], list[float]]:
    """The ends of every run that was cut and of the same one uncut; and the losses of one."""
    ends: dict[str, Any] = {}
    for name, recipe in recipes.items():
        cut(recipe, at=3)
        ends[name] = finished(recipe), finished(elsewhere(recipe, "whole"))
    cut(moved, at=3)
    return ends, losses_of(elsewhere(moved, "whole"))


@pytest.mark.usefixtures("ctrl_c")
def test_resumed_on_as_many_processes_or_others(shards: Path, tmp_path: Path, start: Path) -> None:
    """The same bits on as many, the same data and losses but for rounding on others: two, one, two."""
    recipe = tiny_recipe(shards, tmp_path / "muon", steps=6, micro_batch_tokens=64)
    ramp = (StageRecipe(from_step=2, context_tokens=32, alibi_bias_max=16, bias_ramp_steps=3),)
    lion = OptimizerRecipe(name="lion", learning_rate=1e-3, state_bits=8, spike_z=8)
    shared = ParallelRecipe(context=2)
    recipes = {
        "muon": recipe,
        "narrow": replace(recipe, out=f"{tmp_path}/narrow", weights="bf16", optimizer=lion, stages=ramp),
        "lora": lora_recipe(
            shards,
            tmp_path / "lora",
            start / "quantised",
            weights="bf16",
            lora=LoraRecipe(dropout=0.1),
            parallel=shared,
        ),
    }
    moved = replace(recipe, out=str(tmp_path / "moved"))
    (ends, losses), _ = on_processes(2, in_two, recipes, moved, folder=tmp_path)
    for resumed, uninterrupted in ends.values():
        assert_same_state(resumed, uninterrupted)
    # What two have written, one reads: moments of 8 bits, lower halves, adapters.
    for name in ("narrow", "lora"):
        assert_same_state(whole_state(Trainer(replace(recipes[name], parallel=ParallelRecipe()))), ends[name][0])

    cut(moved, at=5)
    rest, nothing = on_processes(2, losses_of, moved, folder=tmp_path)
    assert rest == pytest.approx(losses[5:], rel=1e-3)  # Muon's bf16
    assert not nothing
    log = (tmp_path / "moved/log.jsonl").read_text().splitlines()
    assert [line for line in log if "resumed" in line] == ['{"resumed_at": 3}', '{"resumed_at": 5}']


def test_a_step_of_two_processes_is_a_checkpoint_as_any(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path / "run", steps=2, micro_batch_tokens=64)
    state, _ = on_processes(2, finished, recipe, folder=tmp_path)
    step = tmp_path / "run/step-0000002"
    assert len(list(step.glob("*.safetensors"))) == 2
    for name, weight in load_checkpoint(step).model.state_dict().items():
        assert torch.equal(weight, state[name]), name


def run_the_module(arguments: list[str]) -> None:
    """``python -m epilogue.train``."""
    sys.argv[1:] = arguments
    runpy.run_module("epilogue.train", run_name="__main__")


def test_sigterm_saves_and_exits_with_0(shards: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{train_shards: {shards}/train, validation_shards: {shards}/validation, out: {tmp_path}/run, steps: 1000000,"
        " context_tokens: 16, batch_tokens: 32, micro_batch_tokens: 32, model: {size: tiny}, device: cpu}"
    )
    process = begin(run_the_module, [str(recipe)])
    while not (tmp_path / "run/log.jsonl").exists():
        process.join(timeout=0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0
    newest = newest_step(tmp_path / "run")
    assert newest is not None
    assert load_checkpoint(newest)
