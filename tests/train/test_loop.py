"""Training learns, and what it does depends on the recipe and the step alone."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from epilogue.checkpoint import save_checkpoint
from epilogue.data import Shards
from epilogue.errors import RecipeError, ShardError, TrainingError
from epilogue.model import MPT, NAMED_SIZES
from epilogue.text import train_tokenizer
from epilogue.train import Evaluation, ModelRecipe, OptimizerRecipe, Progress, Recipe, Trainer
from epilogue.train.batches import Batch
from train.material import state_of, tiny_recipe, write_shards

OptimizerName = Literal["muon", "adamw"]


def losses_of(trainer: Trainer) -> list[float]:
    seen: list[Progress] = []
    trainer.run(on_step=seen.append)
    return [progress.loss for progress in seen]


def optimizer(name: OptimizerName, **changes: Any) -> OptimizerRecipe:
    return OptimizerRecipe(name=name, learning_rate=1e-2, **changes)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_loss_falls(shards: Path, tmp_path: Path, name: OptimizerName) -> None:
    trainer = Trainer(tiny_recipe(shards, tmp_path, steps=40, optimizer=optimizer(name)))
    untrained = trainer.evaluate()
    losses = losses_of(trainer)
    trained = trainer.evaluate()
    assert losses[0] == pytest.approx(math.log(trainer.model.config.vocab_size), rel=0.05)
    assert losses[-1] < 0.5 * losses[0]
    assert trained.loss < 0.5 * untrained.loss
    assert trained.bits_per_byte < 0.5 * untrained.bits_per_byte


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_micro_batches_add_up_to_the_batch(shards: Path, tmp_path: Path, name: OptimizerName) -> None:
    """One step's gradients, not weights: an optimizer makes much of a gradient that is zero but for rounding."""
    gradients = []
    for micro_batch_tokens in (128, 32):
        recipe = tiny_recipe(shards, tmp_path, micro_batch_tokens=micro_batch_tokens, optimizer=optimizer(name))
        trainer = Trainer(recipe)
        loss = trainer._accumulate_gradients(Batch(*next(trainer._windows.batches())))
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters()} | {"loss": loss})
    for key, whole in gradients[0].items():
        assert whole is not None
        torch.testing.assert_close(gradients[1][key], whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_weights_and_moments_are_fp32(shards: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(shards, tmp_path, steps=1))
    trainer.run()
    assert {tensor.dtype for tensor in state_of(trainer).values()} == {torch.float32}


def test_the_learning_rate_follows_the_schedule(shards: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    Trainer(tiny_recipe(shards, tmp_path, steps=6, warmup_steps=1, cooldown_share=0.5)).run(on_step=seen.append)
    assert [progress.learning_rate for progress in seen] == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.02 / 3, 0.01 / 3])
    assert [(progress.step, progress.steps) for progress in seen] == [(step, 6) for step in range(1, 7)]
    assert all(progress.tokens_per_s > 0 for progress in seen)


def test_evaluations_come_when_due(shards: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, Evaluation]] = []
    trainer = Trainer(tiny_recipe(shards, tmp_path, steps=5, evaluate_every_steps=2, evaluate_tokens=10**9))
    trainer.run(on_evaluation=lambda *args: seen.append(args))
    assert [step for step, _ in seen] == [2, 4, 5]
    assert seen[-1][1] == trainer.evaluate()
    # More tokens than there are: every held-out window once.
    assert seen[-1][1].num_tokens == trainer._held_out.num_windows * 16
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "loss" in entry] == [1, 2, 3, 4, 5]
    assert [entry["step"] for entry in logged if "bits_per_byte" in entry] == [2, 4, 5]


def test_an_evaluation_agrees_with_an_independent_calculation(shards: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(shards, tmp_path, evaluate_tokens=48))
    evaluation = trainer.evaluate()
    nats, text = 0.0, b""
    batches = trainer._held_out.batches()
    for ids_BT, targets_BT in (next(batches) for _ in range(3)):
        log_probability_TV = trainer.model(ids_BT)[0].detach().double().log_softmax(-1)
        nats -= sum(float(log_probability_TV[t, i]) for t, i in enumerate(targets_BT[0].tolist()))
        text += b"".join(map(Shards(shards / "train").tokenizer.token_bytes, targets_BT[0].tolist()))
    assert evaluation.num_tokens == 48
    assert evaluation.loss == pytest.approx(nats / 48, rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


def test_compile_is_for_cuda(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("compiled on the CPU")

    monkeypatch.setattr(torch, "compile", refuse)
    Trainer(tiny_recipe(shards, tmp_path, steps=1, compile=True)).run()


def spoil_loss(trainer: Trainer, *, at: int) -> None:
    def loss(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        real = trainer.model.loss(ids_BT, targets_BT)
        return real * math.nan if trainer.step + 1 == at else real

    trainer._loss = loss


def spoil_gradient(trainer: Trainer, *, at: int) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        return gradient * math.inf if trainer.step + 1 == at else gradient

    trainer.model.transformer.wte.weight.register_hook(spoil)


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_a_step_that_is_not_finite_is_not_taken(shards: Path, tmp_path: Path, spoil: Callable[..., None]) -> None:
    recipe = tiny_recipe(shards, tmp_path / "good", steps=3, cooldown_share=0.0)
    good = Trainer(recipe)
    good.run()
    bad = Trainer(replace(recipe, out=str(tmp_path / "bad"), steps=9))
    spoil(bad, at=4)
    with pytest.raises(TrainingError, match=r"step 4 has a loss of .*lower optimizer\.learning_rate"):
        bad.run()
    assert bad.step == 3
    wanted = state_of(good)
    for name, tensor in state_of(bad).items():
        assert torch.equal(tensor, wanted[name]), name


def save_start(folder: Path, tokenizer_from: Path, **changes: Any) -> MPT:
    tokenizer = Shards(tokenizer_from).tokenizer
    config = replace(NAMED_SIZES["tiny"], vocab_size=tokenizer.vocab_size, **changes)
    model = MPT(config)
    model.init_weights(seed=5)
    file = tokenizer_from / "tokenizer.json"
    save_checkpoint(folder, model.state_dict(), config, dtype=torch.bfloat16, tokenizer_file=file)
    return model


def from_start(shards: Path, folder: Path) -> Recipe:
    model = ModelRecipe(size="tiny", initialize_from=str(folder / "start"))
    return tiny_recipe(shards, folder / "run", steps=1, model=model)


def test_a_run_can_start_from_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    start = save_start(tmp_path / "start", shards / "train")
    trainer = Trainer(from_start(shards, tmp_path))
    for name, tensor in trainer.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, start.state_dict()[name].bfloat16().float()), name


def test_the_start_is_needed_at_the_start_only(shards: Path, tmp_path: Path) -> None:
    save_start(tmp_path / "start", shards / "train")
    recipe = from_start(shards, tmp_path)
    Trainer(recipe).run()
    (tmp_path / "start").rename(tmp_path / "elsewhere")
    assert Trainer(replace(recipe, steps=2)).step == 1


def test_a_start_of_other_shapes_is_refused(shards: Path, tmp_path: Path) -> None:
    save_start(tmp_path / "start", shards / "train", n_layers=1)
    with pytest.raises(RecipeError, match=r"start does not fit the recipe's model \(missing: .*set model\.size"):
        Trainer(from_start(shards, tmp_path))


def test_a_start_with_another_tokenizer_is_refused(shards: Path, tmp_path: Path) -> None:
    save_start(tmp_path / "start", shards / "train")
    train_tokenizer(["nothing of the kind, nothing at all"], vocab_size=262).save(tmp_path / "start")
    with pytest.raises(RecipeError, match="start has another tokenizer than the shards"):
        Trainer(from_start(shards, tmp_path))


def test_shards_of_two_tokenizers_are_refused(shards: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shards, tmp_path)
    text = "Something else altogether. "
    other = write_shards(tmp_path / "other", num_books=1, sentences=9, text=text, vocabulary_of=text)
    with pytest.raises(RecipeError, match="have different tokenizers"):
        Trainer(replace(recipe, validation_shards=str(other)))


def test_held_out_books_that_are_too_short_are_said_before_training(shards: Path, tmp_path: Path) -> None:
    short = write_shards(tmp_path / "short", num_books=1, sentences=0)
    with pytest.raises(ShardError, match=r"short fills a window of 17 tokens"):
        Trainer(replace(tiny_recipe(shards, tmp_path), validation_shards=str(short)))


def test_a_device_that_is_not_here_is_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="device is cuda, which is not on this machine"):
        Trainer(tiny_recipe(shards, tmp_path, device="cuda"))
    assert Trainer(tiny_recipe(shards, tmp_path, device="auto")).device == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("compiles", [False, True])
def test_training_on_cuda(shards: Path, tmp_path: Path, compiles: bool) -> None:
    recipe = tiny_recipe(shards, tmp_path, steps=40, device="cuda", compile=compiles, model=ModelRecipe(size="tiny"))
    trainer = Trainer(recipe)
    losses = losses_of(trainer)
    assert losses[-1] < 0.5 * losses[0]
    assert {tensor.dtype for tensor in state_of(trainer).values()} == {torch.float32}
