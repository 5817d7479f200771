"""Adapters learn beside frozen weights, dense and in 4 bits; a run of them is gone on with, and merged."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from epilogue.checkpoint import load_checkpoint, merge_adapter
from epilogue.data import Batch
from epilogue.errors import CheckpointError, RecipeError
from epilogue.model import QuantLinear
from epilogue.text import train_tokenizer
from epilogue.train import ModelRecipe, Progress, Trainer
from epilogue.train.recipe_parts import LoraRecipe
from train.material import assert_same_state, lora_recipe, state_of

pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.mark.parametrize("kind", ["dense", "quantised"])
def test_only_adapters_learn(shards: Path, tmp_path: Path, start: Path, kind: str) -> None:
    trainer = Trainer(lora_recipe(shards, tmp_path / "run", start / kind, steps=30))
    frozen = {name: p.detach().clone() for name, p in trainer.model.state_dict().items() if "adapter" not in name}
    seen: list[Progress] = []
    newest = trainer.run(on_step=seen.append)
    assert seen[-1].loss < 0.7 * seen[0].loss
    for name, before in frozen.items():
        assert torch.equal(trainer.model.state_dict()[name], before), name
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert (newest / "adapter_model.safetensors").stat().st_size < 60_000
    saved = [name for file in newest.glob("*.safetensors") for name in load_file(file)]
    assert saved
    assert all("adapter" in name or "lora_" in name for name in saved), "the base is not saved again"

    merge_adapter(newest, tmp_path / "merged", dtype=torch.float32)
    merged = load_checkpoint(tmp_path / "merged")
    assert not any(isinstance(module, QuantLinear) for module in merged.model.modules())
    assert merged.config.attn_config.alibi_bias_max == 12
    ids = torch.arange(40)[None]
    wanted = trainer.model.eval()(ids)
    assert (merged.model(ids) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["dense", "quantised"])
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_gone_on_with_it_is_the_same(shards: Path, tmp_path: Path, start: Path, kind: str, weights: Any) -> None:
    lora = LoraRecipe(rank=4, dropout=0.1, targets=("Wqkv", "up_proj"))
    recipe = lora_recipe(shards, tmp_path / "cut", start / kind, lora=lora, weights=weights)

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


def test_a_whole_model_can_be_what_its_start_is(shards: Path, tmp_path: Path, start: Path) -> None:
    recipe = lora_recipe(shards, tmp_path, start / "dense", lora=None, steps=20)
    trainer = Trainer(recipe)
    begun = load_checkpoint(start / "dense").model.state_dict()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in trainer.model.state_dict().items())
    assert trainer.model.config.attn_config.alibi_bias_max == 12
    seen: list[Progress] = []
    trainer.run(on_step=seen.append)
    assert seen[-1].loss < 0.7 * seen[0].loss


def test_what_cannot_be_trained_is_refused(shards: Path, tmp_path: Path, start: Path) -> None:
    with pytest.raises(RecipeError, match=r"is quantised, and codes do not learn; add lora"):
        Trainer(lora_recipe(shards, tmp_path, start / "quantised", lora=None))
    with pytest.raises(RecipeError, match=r"name them by model\.initialize_from"):
        Trainer(lora_recipe(shards, tmp_path, start, model=ModelRecipe(size="tiny")))
    named = ModelRecipe(size="tiny", initialize_from=str(start / "quantised"))
    with pytest.raises(RecipeError, match=r"is quantised and the recipe's model\.size is not; set size to null"):
        Trainer(lora_recipe(shards, tmp_path, start, model=named))
    with pytest.raises(RecipeError, match=r"model\.size is null without model\.initialize_from"):
        ModelRecipe(size=None)
    with pytest.raises(RecipeError, match=r"lora\.targets is \['wte'\], wanted some of Wqkv"):
        LoraRecipe(targets=("wte",))


def test_a_start_with_another_tokenizer_is_refused(shards: Path, tmp_path: Path, start: Path) -> None:
    shutil.copytree(start / "dense", tmp_path / "start")
    train_tokenizer(["nothing of the kind, nothing at all"], vocab_size=262).save(tmp_path / "start")
    with pytest.raises(RecipeError, match="start has another tokenizer than the shards"):
        Trainer(lora_recipe(shards, tmp_path / "run", tmp_path / "start"))


def test_adapters_of_another_rank_are_refused(shards: Path, tmp_path: Path, start: Path) -> None:
    recipe = lora_recipe(shards, tmp_path, start / "dense", steps=1)
    Trainer(recipe).run()
    with pytest.raises(CheckpointError, match="adapters of rank 4 and alpha 8, and the model others"):
        Trainer(replace(recipe, lora=LoraRecipe(rank=2, alpha=8)))


def test_a_run_that_has_done_nothing_yet_can_be_gone_on_with(
    shards: Path, tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no moments then, and nothing else to save beside the adapters."""
    recipe = lora_recipe(shards, tmp_path / "cut", start / "quantised", steps=2)
    trainer = Trainer(recipe)
    real = trainer._train_step

    def train_step(batch: Batch) -> float:
        signal.raise_signal(signal.SIGINT)
        return real(batch)

    monkeypatch.setattr(trainer, "_train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert (tmp_path / "cut/step-0000000/adapter_model.safetensors").is_file()
    cut, whole = Trainer(recipe), Trainer(replace(recipe, out=str(tmp_path / "whole")))
    cut.run()
    whole.run()
    assert_same_state(state_of(cut), state_of(whole))
