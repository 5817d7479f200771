"""A corpus that is learned within seconds, and recipes for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from epilogue.checkpoint import save_checkpoint
from epilogue.data import Shards, ShardWriter
from epilogue.model import MPT, NAMED_SIZES
from epilogue.quant import HeldOut, Job, Scheme, quantise_checkpoint
from epilogue.text import train_tokenizer
from epilogue.train import ModelRecipe, OptimizerRecipe, Recipe, Trainer
from epilogue.train.recipe_parts import LoraRecipe

SENTENCE = "The tide came in, the tide went out, and the keeper of the light wrote down the hour. "


def write_shards(
    folder: Path, *, num_books: int, sentences: int, text: str = SENTENCE, vocabulary_of: str = SENTENCE
) -> Path:
    tokenizer = train_tokenizer([vocabulary_of * 3], vocab_size=280)
    writer = ShardWriter(folder, tokenizer)
    for book in range(num_books):
        whole = f"Book {book}. " + text * (sentences + book)
        writer.add(tokenizer.encode(whole), id=str(book), title="", text=whole.encode())
    writer.finish()
    return folder


def tiny_recipe(shards: Path, out: Path, **changes: Any) -> Recipe:
    """Eight windows of 16 tokens a step: the smallest run that has everything."""
    recipe = Recipe(
        train_shards=str(shards / "train"),
        validation_shards=str(shards / "validation"),
        out=str(out),
        steps=6,
        context_tokens=16,
        batch_tokens=128,
        micro_batch_tokens=128,
        model=ModelRecipe(size="tiny", set={"d_model": 32}),
        optimizer=OptimizerRecipe(learning_rate=1e-2),
        warmup_steps=2,
        evaluate_every_steps=100,
        evaluate_tokens=64,
        save_every_steps=100,
        device="cpu",
    )
    return replace(recipe, **changes)


def write_starts(folder: Path, shards: Path) -> Path:
    """A checkpoint, dense and quantised, with more rows than the tokenizer has ids, as the released ones have."""
    config = replace(NAMED_SIZES["tiny"], vocab_size=Shards(shards / "train").tokenizer.vocab_size + 24)
    model = MPT(config)
    model.init_weights(std=0.1, seed=5)
    tokenizer_file = shards / "train/tokenizer.json"
    save_checkpoint(folder / "dense", model.state_dict(), config, tokenizer_file=tokenizer_file)
    ids = [list(range(60))]
    quantise_checkpoint(
        Job(
            source=folder / "dense", out=folder / "quantised", scheme=Scheme(group_size=16), method="rtn",
            calibration=[], held_out=HeldOut(ids, 60),
        )
    )  # fmt: skip
    return folder


def lora_recipe(shards: Path, out: Path, source: Path, **changes: Any) -> Recipe:
    """Adapters beside a start, with other slopes than its own."""
    changes = {
        "model": ModelRecipe(size=None, initialize_from=str(source), set={"attn_config": {"alibi_bias_max": 12}}),
        "optimizer": OptimizerRecipe(name="adamw", learning_rate=2e-2),
        "lora": LoraRecipe(rank=4, alpha=8),
    } | changes
    return tiny_recipe(shards, out, **changes)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every weight and every number the optimizers keep, by name."""
    state = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            state |= {f"optimizer {number}.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert any(name.startswith("optimizer") for name in one)
    for name in one:
        assert torch.equal(one[name], other[name]), name
