"""Context, slopes, batch and learning rate follow the step, in training, on the disk and when gone on with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from epilogue.checkpoint import load_config
from epilogue.errors import RecipeError
from epilogue.train import ModelRecipe, Progress, Recipe, Trainer
from epilogue.train.recipe_parts import StageRecipe
from epilogue.train.stages import Stages
from train.material import assert_same_state, state_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("ctrl_c")

STAGES = (
    StageRecipe(from_step=3, context_tokens=32, alibi_bias_max=16, bias_ramp_steps=4),
    StageRecipe(from_step=9, context_tokens=64, batch_tokens=64, micro_batch_tokens=64, learning_rate=1e-3),
)


def staged(shards: Path, out: Path) -> Recipe:
    return tiny_recipe(shards, out, steps=12, stages=STAGES, schedule="cosine", save_every_steps=100)


def test_what_a_step_has() -> None:
    recipe = Recipe(train_shards="a", validation_shards="b", out="c", steps=12, context_tokens=16, stages=STAGES[:1])
    stages = Stages(recipe)
    assert [stages.all[stages.number_at(step)].context_tokens for step in range(5)] == [16, 16, 16, 32, 32]
    assert [stages.alibi_bias_max(step, at_first=8) for step in range(9)] == [8, 8, 8, 10, 12, 14, 16, 16, 16]
    assert stages.most_context_tokens == 32


def test_a_learning_rate_of_its_own_begins_a_schedule_of_its_own() -> None:
    stage = StageRecipe(from_step=6, learning_rate=0.5, warmup_steps=1, cooldown_share=0.5)
    recipe = Recipe(train_shards="a", validation_shards="b", out="c", steps=10, warmup_steps=0, stages=(stage,))
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=2.0), cooldown_share=0.5)
    rates = [Stages(recipe).learning_rate(step) for step in range(10)]
    assert rates == pytest.approx([2, 2, 2, 2, 4 / 3, 2 / 3, 0.25, 0.5, 0.5, 0.25])


def test_loader_slopes_and_checkpoints_follow(shards: Path, tmp_path: Path) -> None:
    trainer = Trainer(replace(staged(shards, tmp_path), save_every_steps=5))
    seen: list[tuple[int, int, float]] = []

    def on_step(progress: Progress) -> None:
        slope = trainer.model.slopes_H[-1].item()
        seen.append((progress.step, trainer._windows.num_tokens, slope))

    trainer.run(on_step=on_step)
    assert [tokens for _, tokens, _ in seen] == [16] * 3 + [32] * 6 + [64] * 3
    maxima = [8, 8, 8, 10, 12, 14, 16, 16, 16, 16, 16, 16]
    assert [slope for *_, slope in seen] == pytest.approx([2.0**-bias_max for bias_max in maxima])
    assert trainer._held_out.num_tokens == 64
    for step in (10, 12):
        config = load_config(tmp_path / f"step-{step:07}")
        assert (config.attn_config.alibi_bias_max, config.max_seq_len) == (16, 64)


# The middle of the first stage, of a ramp, of the last stage, and the very steps at which stages begin.
@pytest.mark.parametrize("at", [1, 3, 5, 9, 11])
def test_gone_on_with_in_the_middle_it_is_the_same(shards: Path, tmp_path: Path, at: int) -> None:
    recipe = staged(shards, tmp_path / "cut")

    def stop(progress: Progress) -> None:
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe).run(on_step=stop)
    cut, whole = Trainer(recipe), Trainer(replace(recipe, out=str(tmp_path / "whole")))
    assert cut.step == at
    cut.run()
    whole.run()
    assert_same_state(state_of(cut), state_of(whole))
    assert cut.evaluate() == whole.evaluate()


def test_a_step_that_was_begun_leaves_the_slopes_of_the_one_before(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = staged(shards, tmp_path)
    trainer = Trainer(recipe)
    real = trainer._train_step

    def interrupted(*batch: object) -> float:
        if trainer.step == 4:
            raise KeyboardInterrupt
        return real(*batch)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert load_config(tmp_path / "step-0000004").attn_config.alibi_bias_max == 10
    assert Trainer(recipe).step == 4


def test_slopes_of_a_model_without_any_are_refused(shards: Path, tmp_path: Path) -> None:
    model = ModelRecipe(size="tiny", set={"attn_config": {"alibi": False}})
    with pytest.raises(RecipeError, match="stages set alibi_bias_max and the model has no ALiBi"):
        Trainer(replace(staged(shards, tmp_path), model=model))


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ((StageRecipe(from_step=6),), r"stages begin at steps \[6\], wanted rising steps below steps = 6"),
        ((StageRecipe(from_step=4), StageRecipe(from_step=4)), r"stages begin at steps \[4, 4\]"),
        ((StageRecipe(from_step=4, context_tokens=24),), r"context_tokens 24, also in the stage from step 4"),
    ],
)
def test_stages_that_do_not_fit(shards: Path, tmp_path: Path, stages: tuple[StageRecipe, ...], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Trainer(tiny_recipe(shards, tmp_path, stages=stages))


def test_a_warm_up_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"from step 4 has a warmup_steps or cooldown_share and no learning_rate"):
        StageRecipe(from_step=4, warmup_steps=3)


def test_the_log_is_of_one_piece(shards: Path, tmp_path: Path) -> None:
    Trainer(staged(shards, tmp_path)).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
