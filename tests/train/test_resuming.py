"""An interrupted run ends with the bits of an uninterrupted one, and its folder holds whole steps only."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from epilogue.checkpoint import load_checkpoint, load_tokenizer
from epilogue.data import Batch
from epilogue.errors import CheckpointError, RecipeError
from epilogue.train import ModelRecipe, OptimizerRecipe, Progress, Recipe, StoppedAtOnce, Trainer, run_folder
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


def press(number: signal.Signals, *, at: int, during: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal while one of the optimizers, or the evaluation, works for a step."""
    owner: Any = trainer if during == "evaluate" else trainer.optimizers[0]
    real = getattr(owner, during)

    def work() -> Any:
        if trainer.step == at:
            signal.raise_signal(number)
        return real()

    monkeypatch.setattr(owner, during, work)


def test_ctrl_c_takes_effect_behind_the_step(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path / "cut")
    trainer = Trainer(recipe)
    press(signal.SIGINT, at=1, during="step", trainer=trainer, monkeypatch=monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert steps_in(tmp_path / "cut") == ["step-0000002"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole = finished(replace(recipe, out=str(tmp_path / "whole")))
    assert_same_state(state_of(finished(recipe)), state_of(whole))


def test_sigterm_leaves_between_two_micro_batches(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is half done is not waited for; what it has of gradients is dropped."""
    recipe = tiny_recipe(shards, tmp_path / "cut", micro_batch_tokens=32)
    trainer = Trainer(recipe)
    real, times = trainer._loss, []

    def loss(*batch: Any) -> Any:
        times.append(1)
        if len(times) == 6:
            signal.raise_signal(signal.SIGTERM)
        return real(*batch)

    monkeypatch.setattr(trainer, "_loss", loss)
    with pytest.raises(SystemExit) as ended:
        trainer.run()
    assert (ended.value.code, len(times), trainer.step) == (0, 6, 1)
    whole = finished(replace(recipe, out=str(tmp_path / "whole")))
    assert_same_state(state_of(finished(recipe)), state_of(whole))


def test_a_signal_during_evaluation(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path, evaluate_every_steps=2)
    trainer = Trainer(recipe)
    press(signal.SIGTERM, at=2, during="evaluate", trainer=trainer, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit):
        trainer.run()
    assert steps_in(tmp_path) == ["step-0000002"]
    assert not [entry for entry in log_of(tmp_path) if "validation_loss" in entry]


def test_a_second_ctrl_c_neither_waits_nor_saves(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come in the middle of a step."""
    trainer = Trainer(tiny_recipe(shards, tmp_path))

    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(trainer.optimizers[0], "step", impatient)
    with pytest.raises(StoppedAtOnce):
        trainer.run()
    assert not steps_in(tmp_path)


def test_what_the_process_ignores_stays_ignored(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        trainer = Trainer(tiny_recipe(shards, tmp_path, steps=2))
        press(signal.SIGTERM, at=0, during="step", trainer=trainer, monkeypatch=monkeypatch)
        trainer.run()
        assert trainer.step == 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_another_thread_can_train(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=2)
    thread = threading.Thread(target=finished, args=[recipe])
    thread.start()
    thread.join()
    assert steps_in(tmp_path) == ["step-0000002"]


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
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(ENOSPC, "No space\n left on device")

    monkeypatch.setattr(safetensors.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step-0000006 cannot be written \(.*No space left on device\); make"):
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


def the_tensors(step: Path) -> Path:
    (file,) = step.glob("*.safetensors")
    return file


def truncate(step: Path) -> None:
    file = the_tensors(step)
    file.write_bytes(file.read_bytes()[:-1])


def remove(step: Path) -> None:
    the_tensors(step).unlink()


def write_nonsense(step: Path) -> None:
    file = the_tensors(step)
    file.write_bytes(b"\xff" * file.stat().st_size)


def forget_a_weight(step: Path) -> None:
    file = the_tensors(step)
    tensors = safetensors.torch.load_file(file)
    del tensors["transformer.norm_f.weight"]
    safetensors.torch.save_file(tensors, file)
    about = json.loads((step / "step.json").read_text())
    (step / "step.json").write_text(json.dumps(about | {"files": {file.name: file.stat().st_size}}))


@pytest.mark.parametrize("damage", [truncate, remove, write_nonsense, forget_a_weight])
def test_a_damaged_step_is_refused(shards: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=2, save_every_steps=1)
    finished(recipe)
    damage(tmp_path / "step-0000002")
    with pytest.raises(CheckpointError, match=r"step-0000002.* damaged .* to go on from an older step") as error:
        Trainer(recipe)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="step-0000002"):
        load_checkpoint(tmp_path / "step-0000002")
    shutil.rmtree(tmp_path / "step-0000002")
    assert Trainer(recipe).step == 1


def test_as_many_steps_stay_as_asked_for(shards: Path, tmp_path: Path) -> None:
    finished(tiny_recipe(shards, tmp_path, steps=5, save_every_steps=1, keep_steps=3))
    assert steps_in(tmp_path) == ["step-0000003", "step-0000004", "step-0000005"]


def test_what_is_saved_is_the_step_and_not_what_comes_after(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the file is written."""
    has_gone_on = threading.Event()
    real = safetensors.torch.save

    def wait_and_save(*args: Any, **kwargs: Any) -> bytes:
        assert has_gone_on.wait(timeout=60)
        return real(*args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save", wait_and_save)
    recipe = tiny_recipe(shards, tmp_path / "one", steps=4, save_every_steps=2)
    trainer = Trainer(recipe)
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def on_step(progress: Progress) -> None:
        seen[progress.step] = state_of(trainer)
        if progress.step == 3:
            has_gone_on.set()

    trainer.run(on_step=on_step)
    shutil.rmtree(tmp_path / "one" / "step-0000004")
    assert_same_state(state_of(Trainer(recipe)), seen[2])


def test_nothing_is_done_yet_can_be_saved_too(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(shards, tmp_path / "cut")
    trainer = Trainer(recipe)
    real = trainer._train_step

    def train_step(batch: Batch) -> float:
        signal.raise_signal(signal.SIGINT)
        return real(batch)

    monkeypatch.setattr(trainer, "_train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert steps_in(tmp_path / "cut") == ["step-0000000"]
    whole = finished(replace(recipe, out=str(tmp_path / "whole")))
    assert_same_state(state_of(finished(recipe)), state_of(whole))
