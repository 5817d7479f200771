"""An interrupted run ends with the bits of an uninterrupted one, and its folder holds whole steps only."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from epilogue.checkpoint import load_checkpoint, load_tokenizer
from epilogue.errors import CheckpointError, RecipeError
from epilogue.train import ModelRecipe, OptimizerRecipe, Progress, Recipe, Trainer, run_folder
from train.material import assert_same_state, state_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("ctrl_c")

DROPOUT = ModelRecipe(size="tiny", set={"d_model": 32, "resid_pdrop": 0.1, "emb_pdrop": 0.1})


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_step


def interrupted(recipe: Recipe, *, at: int) -> Trainer:
    trainer = Trainer(recipe)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(on_step=stop_at(at))
    return trainer


def finished(recipe: Recipe) -> Trainer:
    trainer = Trainer(recipe)
    trainer.run()
    return trainer


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("model", [ModelRecipe(size="tiny", set={"d_model": 32}), DROPOUT], ids=["plain", "dropout"])
def test_resumed_is_uninterrupted(
    shards: Path, tmp_path: Path, name: Literal["muon", "adamw"], model: ModelRecipe
) -> None:
    optimizer = OptimizerRecipe(name=name, learning_rate=1e-2)
    recipe = tiny_recipe(shards, tmp_path / "cut", steps=16, optimizer=optimizer, model=model)
    interrupted(recipe, at=3)
    interrupted(recipe, at=13)
    cut = finished(recipe)
    whole = finished(replace(recipe, out=str(tmp_path / "whole")))
    # The cuts lie in different epochs, or the test would not say what it should.
    assert 3 < whole._windows.batches_per_epoch < 13
    assert_same_state(state_of(cut), state_of(whole))


def test_the_same_trainer_can_go_on_as_well(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path / "cut")
    trainer = interrupted(recipe, at=2)
    trainer.run()
    assert_same_state(state_of(trainer), state_of(finished(replace(recipe, out=str(tmp_path / "whole")))))


def test_ctrl_c_between_two_optimizers_waits_for_both(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(shards, tmp_path / "cut")
    trainer = Trainer(recipe)
    adamw = trainer.optimizers[0]
    real = adamw.step

    def step() -> None:
        real()
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(adamw, "step", step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert steps_in(tmp_path / "cut") == ["step-0000002"]
    whole = finished(replace(recipe, out=str(tmp_path / "whole")))
    assert_same_state(state_of(finished(recipe)), state_of(whole))


def test_ctrl_c_amid_a_save_makes_it_anew(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=6, save_every_steps=2)
    trainer, real, times = Trainer(recipe), torch.save, []

    def save(*args: Any) -> None:
        times.append(1)
        if len(times) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert steps_in(tmp_path) == ["step-0000002", "step-0000004"]
    assert Trainer(recipe).step == 4


def test_a_second_ctrl_c_leaves_the_older_step(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=6, save_every_steps=2)
    finished(replace(recipe, steps=2))

    def never(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", never)
        with pytest.raises(KeyboardInterrupt):
            Trainer(recipe).run()
    assert steps_in(tmp_path) == ["step-0000002"]
    assert Trainer(recipe).step == 2


def test_what_a_crash_left_is_ignored_and_cleared(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=2)
    for name in ("step-0000001.partial", "step-0000009.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-by-step").mkdir()
    trainer = Trainer(recipe)
    assert trainer.step == 0
    assert trainer.run() == tmp_path / "step-0000002"
    assert steps_in(tmp_path) == ["step-0000002", "step-by-step"]


def test_a_disk_that_is_full_is_said(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("write failed\n at some line of C++")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step-0000006 cannot be written \(write failed at some line"):
        finished(tiny_recipe(shards, tmp_path))
    assert not steps_in(tmp_path)


def test_two_steps_are_kept(shards: Path, tmp_path: Path) -> None:
    trainer = finished(tiny_recipe(shards, tmp_path, steps=7, save_every_steps=2))
    assert steps_in(tmp_path) == ["step-0000006", "step-0000007"]
    checkpoint = load_checkpoint(tmp_path / "step-0000007")
    assert torch.equal(checkpoint.model.transformer.wte.weight, trainer.model.transformer.wte.weight)
    assert load_tokenizer(checkpoint.directory, checkpoint.config).vocab_size == checkpoint.config.vocab_size


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("step-9999999", "step-10000000", "step-0000010"):
        (tmp_path / name).mkdir()
    assert run_folder.newest_step(tmp_path) == tmp_path / "step-10000000"
    assert run_folder.newest_step(tmp_path / "none") is None


def test_a_finished_run_is_finished(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path)
    finished(recipe)
    before = (tmp_path / "log.jsonl").read_text()
    monkeypatch.setattr(Trainer, "evaluate", None)
    trainer = Trainer(recipe)
    assert (trainer.step, trainer.run()) == (6, tmp_path / "step-0000006")
    assert Trainer(replace(recipe, steps=3)).run() == tmp_path / "step-0000006"
    assert (tmp_path / "log.jsonl").read_text() == before


def test_the_log_says_where_it_was_taken_up(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=6, save_every_steps=2)
    trainer = Trainer(recipe)
    with pytest.raises(ZeroDivisionError):
        trainer.run(on_step=lambda progress: None if progress.step < 5 else 1 // 0)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    finished(recipe)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines.pop(5) == '{"step": 6, "lo'
    places = [json.loads(line).get("resumed_at", json.loads(line).get("step")) for line in lines]
    assert places == [1, 2, 3, 4, 5, 4, 5, 6, 6]
    assert json.loads(lines[5]) == {"resumed_at": 4}


def test_the_log_says_that_a_run_began_anew(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=2)
    with pytest.raises(ZeroDivisionError):
        Trainer(recipe).run(on_step=lambda progress: 1 // 0)
    finished(recipe)
    assert [entry.get("resumed_at", entry.get("step")) for entry in log_of(tmp_path)] == [1, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"set": {"d_model": 64}}, r"is of another model than the recipe \(d_model: 32 there, 64 here\); go on"),
        ({"set": {"d_model": 32, "attn_config": {"clip_qkv": 6}}}, r"\(clip_qkv: None there, 6.0 here\)"),
        ({"set": {"d_model": 32, "n_layers": 1, "norm_type": "rmsnorm"}}, r"n_layers: 2 there, 1 here, norm_type: low"),
    ],
)
def test_a_recipe_for_another_model_is_refused(
    shards: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=1)
    finished(recipe)
    with pytest.raises(RecipeError, match=sentence):
        Trainer(replace(recipe, model=replace(recipe.model, **changes)))


def test_a_recipe_with_another_optimizer_is_refused(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=1)
    finished(recipe)
    with pytest.raises(RecipeError, match=r"step-0000001 was made with another optimizer"):
        Trainer(replace(recipe, optimizer=OptimizerRecipe(name="adamw")))


def test_a_changed_setting_of_the_optimizer_takes_effect(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=1)
    finished(recipe)
    changed = OptimizerRecipe(weight_decay=0.7, momentum=0.5, betas=(0.5, 0.6))
    adamw, muon = Trainer(replace(recipe, optimizer=changed)).optimizers
    assert [group["weight_decay"] for group in (*adamw.param_groups, *muon.param_groups)] == [0.7, 0.0, 0.7]
    assert adamw.param_groups[0]["betas"] == (0.5, 0.6)
    assert muon.param_groups[0]["momentum"] == 0.5


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_nonsense(path: Path) -> None:
    path.write_bytes(b"nonsense")


def write_something_else(path: Path) -> None:
    torch.save({"step": 1}, path)


@pytest.mark.parametrize("damage", [truncate, write_nonsense, write_something_else, Path.unlink])
def test_a_damaged_state_is_refused(shards: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=2, save_every_steps=1)
    finished(recipe)
    damage(tmp_path / "step-0000002" / "training_state.pt")
    with pytest.raises(CheckpointError, match=r"training_state\.pt is damaged .*step-0000002 to go on") as error:
        Trainer(recipe)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "step-0000002")
    assert Trainer(recipe).step == 1


def test_damaged_weights_are_refused(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=1)
    finished(recipe)
    truncate(tmp_path / "step-0000001" / "model.safetensors")
    with pytest.raises(CheckpointError, match="step-0000001"):
        Trainer(recipe)


def test_nothing_is_done_yet_can_be_saved_too(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path / "cut")
    trainer = Trainer(recipe)
    monkeypatch.setattr(trainer, "_train_step", lambda *batch: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert steps_in(tmp_path / "cut") == ["step-0000000"]
    whole = finished(replace(recipe, out=str(tmp_path / "whole")))
    assert_same_state(state_of(finished(recipe)), state_of(whole))
