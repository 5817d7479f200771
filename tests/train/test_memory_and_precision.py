"""What saves memory changes nothing that is learned; bf16 weights and 8-bit moments learn, and go on to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from epilogue.errors import RecipeError
from epilogue.train import ModelRecipe, OptimizerRecipe, Progress, Recipe, Trainer
from epilogue.train.recipe_parts import MemoryRecipe
from train.material import assert_same_state, state_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("ctrl_c")


def losses_of(recipe: Recipe) -> list[float]:
    seen: list[Progress] = []
    Trainer(recipe).run(on_step=seen.append)
    return [progress.loss for progress in seen]


@pytest.mark.parametrize(
    "memory",
    [
        MemoryRecipe(checkpointing="full"),
        MemoryRecipe(checkpointing="selective", mlp_tile_tokens=5),
        MemoryRecipe(checkpointing="full", mlp_tile_tokens=5, offload=True),
    ],
)
def test_less_memory_is_the_same_run(shards: Path, tmp_path: Path, memory: MemoryRecipe) -> None:
    recipe = tiny_recipe(shards, tmp_path / "plain")
    saving = replace(recipe, out=str(tmp_path / "saving"), memory=memory)
    assert losses_of(saving) == pytest.approx(losses_of(recipe), rel=1e-4)


def test_keys_that_hold_nothing_may_be_left_out(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path / "dense")
    reaching = replace(recipe, out=str(tmp_path / "reaching"), epsilon=1e-6)
    assert losses_of(reaching) == pytest.approx(losses_of(recipe), rel=1e-4)
    assert Trainer(reaching).model.transformer.blocks[0].attn.epsilon == 1e-6


def test_tiles_without_checkpointing_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"memory\.mlp_tile_tokens needs memory\.checkpointing selective or full"):
        MemoryRecipe(mlp_tile_tokens=5)


def small_steps(name: Any, **changes: Any) -> OptimizerRecipe:
    return OptimizerRecipe(name=name, learning_rate={"lion": 3e-3, "adamw": 1e-2}[name], **changes)


OPTIMIZERS = [
    ("fp32", small_steps("lion")),
    ("fp32", small_steps("adamw", state_bits=8)),
    ("bf16", small_steps("lion", state_bits=8, bf16_updates="stochastic")),
    ("bf16", small_steps("adamw", bf16_updates="residual")),
]


@pytest.mark.parametrize(("weights", "optimizer"), OPTIMIZERS)
def test_it_learns(shards: Path, tmp_path: Path, weights: Any, optimizer: OptimizerRecipe) -> None:
    losses = losses_of(tiny_recipe(shards, tmp_path, steps=40, weights=weights, optimizer=optimizer))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("weights", "optimizer"), OPTIMIZERS)
def test_it_goes_on_to_the_bit(shards: Path, tmp_path: Path, weights: Any, optimizer: OptimizerRecipe) -> None:
    recipe = tiny_recipe(shards, tmp_path / "cut", steps=7, weights=weights, optimizer=optimizer)
    recipe = replace(recipe, model=ModelRecipe(size="tiny"))

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe).run(on_step=stop)
    cut, whole = Trainer(recipe), Trainer(replace(recipe, out=str(tmp_path / "whole")))
    assert cut.step == 3
    cut.run()
    whole.run()
    assert_same_state(state_of(cut), state_of(whole))
    assert cut.model.dtype == (torch.bfloat16 if weights == "bf16" else torch.float32)


@pytest.mark.parametrize(
    ("before", "behind"),
    [({"state_bits": 8}, {"bf16_updates": "stochastic"}), ({"bf16_updates": "stochastic"}, {"state_bits": 8})],
)
def test_precision_may_change_on_the_way(
    shards: Path, tmp_path: Path, before: dict[str, Any], behind: dict[str, Any]
) -> None:
    """Averages and lower halves go on from what there is, in what is asked for now."""
    first = small_steps("lion", **before)
    recipe = tiny_recipe(shards, tmp_path / "run", steps=2, weights="bf16", cooldown_share=0.0, optimizer=first)
    Trainer(recipe).run()
    changed = replace(recipe, steps=4, optimizer=small_steps("lion", **behind))
    trainer = Trainer(changed)
    weight = trainer.model.transformer.blocks[0].ffn.up_proj.weight
    momentum = trainer.optimizers[0].state[weight]["exp_avg"].float().clone()
    trainer.run()
    state = trainer.optimizers[0].state[weight]
    assert state["exp_avg"].dtype == (torch.int8 if "state_bits" in behind else torch.float32)
    assert not torch.equal(state["exp_avg"].float(), momentum)
    assert ("exp_avg_scales" in state, "lower_half" in state) == ("state_bits" in behind, "bf16_updates" not in behind)


def test_what_muon_does_not_do_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"state_bits 8 is of adamw and lion"):
        OptimizerRecipe(name="muon", state_bits=8)
    with pytest.raises(RecipeError, match="muon moves fp32 weights only"):
        Recipe(train_shards="a", validation_shards="b", out="c", steps=1, weights="bf16")
