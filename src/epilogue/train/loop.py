"""The training loop: one device, gradient accumulation, resumable to the bit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint
from epilogue.data import Shards, WindowLoader
from epilogue.errors import RecipeError
from epilogue.model import MPT
from epilogue.train.metrics import Evaluation, Speed, evaluate
from epilogue.train.optimizer import make_optimizers, set_learning_rate
from epilogue.train.recipe import Recipe
from epilogue.train.run_state import append_log, newest_step, resume_run, save_run
from epilogue.train.schedule import learning_rate_factor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a step tells its watcher."""

    step: int
    """Steps done."""
    steps: int
    loss: float
    """Nats a token over the steps since the last report."""
    tokens_per_s: float
    learning_rate: float


class Trainer:
    """Trains one model by one recipe; a run found in the recipe's folder is gone on with.

    Weights are fp32; on CUDA the arithmetic of matrices and attention is bf16 by autocast. The state after a step
    depends on the recipe and the step alone, so an interrupted run ends with the bits of an uninterrupted one.

    Raises:
        RecipeError: the recipe cannot be run; ShardError, CheckpointError: its data or start cannot be read.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.out = Path(recipe.out)
        self.device = _device(recipe)
        self.train_shards, self.validation_shards = Shards(recipe.train_shards), Shards(recipe.validation_shards)
        if self.train_shards.tokenizer.fingerprint != self.validation_shards.tokenizer.fingerprint:
            raise RecipeError(f"{recipe.train_shards} and {recipe.validation_shards} have different tokenizers")
        self.model = _start(recipe, self.train_shards.tokenizer.vocab_size).to(self.device)
        if self.model.config.attn_config.attn_pdrop:
            raise RecipeError("attn_pdrop is not 0; dropout of attention weights is not trained here")
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.step = resume_run(self.out, self.model, self.optimizers)
        should_compile = recipe.compile and self.device == "cuda"
        self._loss: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(self.model.loss, dynamic=False) if should_compile else self.model.loss
        )

    def run(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
    ) -> Path:
        """Train to the recipe's last step and return the newest checkpoint.

        KeyboardInterrupt saves the step reached and is raised again.
        """
        recipe = self.recipe
        loader = WindowLoader(
            self.train_shards,
            num_tokens=recipe.context_tokens,
            batch=recipe.batch_tokens // recipe.context_tokens,
            seed=recipe.seed,
        )
        batches = loader.batches(start=self.step)
        speed = Speed()
        try:
            while self.step < recipe.steps:
                loss = self._train_step(*next(batches))
                speed.count(recipe.batch_tokens)
                on_step(self._progress(loss, speed))
                self._evaluate_and_save(on_evaluation)
        except KeyboardInterrupt:
            self._save()
            raise
        newest = newest_step(self.out)
        assert newest is not None
        return newest

    def _train_step(self, ids_BT: Tensor, targets_BT: Tensor) -> float:
        recipe = self.recipe
        rows = recipe.micro_batch_tokens // recipe.context_tokens
        micro_batches = list(zip(ids_BT.split(rows), targets_BT.split(rows), strict=True))
        self.model.train()
        total = torch.zeros((), device=self.device)
        for ids, targets in micro_batches:
            with self._autocast():
                loss = self._loss(self._move(ids), self._move(targets)) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip_norm)
        set_learning_rate(self.optimizers, self._learning_rate())
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total.item()

    def _progress(self, loss: float, speed: Speed) -> Progress:
        if not math.isfinite(loss):
            raise RecipeError(f"the loss is {loss} at step {self.step}; go on from an older step with a lower rate")
        progress = Progress(
            step=self.step,
            steps=self.recipe.steps,
            loss=loss,
            tokens_per_s=speed.look(),
            learning_rate=self.optimizers[0].param_groups[0]["lr"],
        )
        self.out.mkdir(parents=True, exist_ok=True)
        append_log(self.out, {"step": self.step, "loss": round(loss, 5), "tokens_per_s": round(progress.tokens_per_s)})
        return progress

    def _evaluate_and_save(self, on_evaluation: Callable[[int, Evaluation], None]) -> None:
        is_last = self.step == self.recipe.steps
        if is_last or self.step % self.recipe.evaluate_every_steps == 0:
            evaluation = self.evaluate()
            append_log(
                self.out,
                {"step": self.step, "bits_per_byte": evaluation.bits_per_byte, "validation_loss": evaluation.loss},
            )
            on_evaluation(self.step, evaluation)
        if is_last or self.step % self.recipe.save_every_steps == 0:
            self._save()

    def evaluate(self) -> Evaluation:
        """Loss on the held-out shards at the recipe's context length."""
        self.model.eval()
        with self._autocast():
            return evaluate(
                self.model.loss,
                self.validation_shards,
                context_tokens=self.recipe.context_tokens,
                num_tokens=self.recipe.evaluate_tokens,
                device=self.device,
            )

    def _save(self) -> None:
        save_run(
            self.out,
            self.model,
            self.optimizers,
            step=self.step,
            tokenizer_file=Path(self.recipe.train_shards) / "tokenizer.json",
            dtype=torch.float32,
        )

    def _learning_rate(self) -> float:
        return self.recipe.optimizer.learning_rate * learning_rate_factor(
            self.step,
            steps=self.recipe.steps,
            warmup_steps=self.recipe.warmup_steps,
            cooldown_share=self.recipe.cooldown_share,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda")

    def _move(self, ids_BT: Tensor) -> Tensor:
        return ids_BT.to(self.device, non_blocking=True)


def _device(recipe: Recipe) -> str:
    if recipe.device != "auto":
        return recipe.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _start(recipe: Recipe, vocab_size: int) -> MPT:
    config = recipe.model.config(vocab_size, recipe.context_tokens)
    model = MPT(config)
    if recipe.model.initialize_from is None:
        model.init_weights(seed=recipe.seed)
    else:
        start = load_checkpoint(recipe.model.initialize_from, dtype=torch.float32)
        model.load_state_dict(start.model.state_dict())
    return model
