"""The training loop: one device, gradient accumulation, resumable to the bit."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from epilogue.data import Batch, Shards, WindowLoader
from epilogue.errors import RecipeError, TrainingError
from epilogue.train.interrupts import interrupts_held
from epilogue.train.metrics import Evaluation, evaluate
from epilogue.train.optimizer import make_optimizers, set_learning_rate
from epilogue.train.progress import Meter, Progress
from epilogue.train.recipe import Recipe
from epilogue.train.run_state import append_log, log_resumption, newest_step, resume_run, save_run
from epilogue.train.schedule import learning_rate_factor
from epilogue.train.start import make_model
from epilogue.train.trackers import Tracker, open_trackers, require_trackers


class Trainer:
    """Trains one model by one recipe; a run found in the recipe's folder is gone on with.

    Weights are fp32; on CUDA the arithmetic of matrices and attention is bf16 by autocast. The state after a step
    depends on the recipe and the step alone, so an interrupted run ends with the bits of an uninterrupted one (on
    CUDA as far as its kernels repeat themselves).

    Raises:
        RecipeError: the recipe cannot be run, or the run found was made by one with another model.
        ShardError, CheckpointError: its data, its start or the run found cannot be read.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.out = Path(recipe.out)
        self.device = _device(recipe)
        require_trackers(recipe)
        self._shards, held_out = Shards(recipe.train_shards), Shards(recipe.validation_shards)
        if self._shards.tokenizer.fingerprint != held_out.tokenizer.fingerprint:
            raise RecipeError(
                f"{recipe.train_shards} and {recipe.validation_shards} have different tokenizers; "
                "prepare one with the other's (--tokenizer)"
            )
        rows = recipe.batch_tokens // recipe.context_tokens
        self._windows = WindowLoader(self._shards, num_tokens=recipe.context_tokens, batch=rows, seed=recipe.seed)
        self._held_out = WindowLoader(held_out, num_tokens=recipe.context_tokens, batch=1)
        newest = newest_step(self.out)
        self.model = make_model(recipe, self._shards.tokenizer, is_fresh=newest is None).to(self.device)
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.step = 0 if newest is None else resume_run(newest, self.model, self.optimizers)
        self._trackers: list[Tracker] = []
        should_compile = recipe.compile and self.device == "cuda"
        self._loss: Callable[[Tensor, Tensor, Tensor | None], Tensor] = (
            torch.compile(self.model.loss, dynamic=False) if should_compile else self.model.loss
        )

    def run(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
        peak_flop_per_s: float | None = None,
    ) -> Path:
        """Train to the recipe's last step and return the newest checkpoint; nothing is left to do in a finished run.

        ``peak_flop_per_s`` is what all devices together can do at best; MFU is told if it is given.

        KeyboardInterrupt saves the step reached and is raised again. A save comes before the evaluation of its step,
        so one that is interrupted is not made up for.

        Raises:
            TrainingError: loss or gradients are no longer finite; the weights are as the last good step left them.
            CheckpointError: a checkpoint cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.step < self.recipe.steps:
            log_resumption(self.out, self.step)
            self._trackers = open_trackers(self.recipe, step=self.step)
        meter = self._meter(peak_flop_per_s)
        batches = self._windows.batches(start=self.step)
        try:
            while self.step < self.recipe.steps:
                started_s = time.perf_counter()
                batch = next(batches)
                loss, rate = self._train_step(batch), self.optimizers[0].param_groups[0]["lr"]
                time_s = time.perf_counter() - started_s
                progress = meter.report(self.step, batch, loss=loss, time_s=time_s, learning_rate=rate)
                self._log(progress.entry())
                on_step(progress)
                if self._is_due(self.recipe.save_every_steps):
                    self._save()
                if self._is_due(self.recipe.evaluate_every_steps):
                    on_evaluation(self.step, self._evaluate_and_log())
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            for tracker in self._trackers:
                tracker.close()
            self._trackers = []
        newest = newest_step(self.out)
        assert newest is not None
        return newest

    def evaluate(self) -> Evaluation:
        """Loss on the held-out shards at the recipe's context length."""
        self.model.eval()
        with self._autocast():
            return evaluate(self.model.loss, self._held_out, num_tokens=self.recipe.evaluate_tokens, device=self.device)

    def _train_step(self, batch: Batch) -> float:
        """One optimizer step, whole or not at all; the loss before it."""
        loss = self._accumulate_gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
        loss_before, norm_before = torch.stack([loss, norm]).tolist()
        if not (math.isfinite(loss_before) and math.isfinite(norm_before)):
            raise TrainingError(
                f"step {self.step + 1} has a loss of {loss_before} and gradients of norm {norm_before}, and was not "
                f"taken; lower optimizer.learning_rate or raise warmup_steps, and remove steps from {self.out} to go "
                "on from before the trouble began"
            )
        set_learning_rate(self.optimizers, self._learning_rate())
        with interrupts_held():
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
        self.model.zero_grad(set_to_none=True)
        return float(loss_before)

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss over the batch's targets, which is returned, one micro-batch after the other."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(self.recipe.seed << 32 | self.step)  # of dropout, for a model that has it
        total = torch.zeros((), device=self.device)
        for part in batch.split(self.recipe.micro_batch_tokens // self.recipe.context_tokens):
            share = int((part.targets_BT >= 0).sum()) / batch.num_targets
            starts_BT = None if part.document_start_BT is None else part.document_start_BT.to(self.device)
            with self._autocast():
                loss = self._loss(part.ids_BT.to(self.device), part.targets_BT.to(self.device), starts_BT) * share
            loss.backward()
            total += loss.detach()
        return total

    def _meter(self, peak_flop_per_s: float | None) -> Meter:
        return Meter(
            self.model.config,
            bytes_per_token=self._shards.bytes_per_token,
            first_step=self.step,
            steps=self.recipe.steps,
            device=self.device,
            peak_flop_per_s=peak_flop_per_s,
        )

    def _log(self, numbers: dict[str, float]) -> None:
        append_log(self.out, {"step": self.step} | numbers)
        for tracker in self._trackers:
            tracker.log(self.step, numbers)

    def _is_due(self, every_steps: int) -> bool:
        return self.step == self.recipe.steps or self.step % every_steps == 0

    def _evaluate_and_log(self) -> Evaluation:
        evaluation = self.evaluate()
        self._log({"validation_loss": evaluation.loss, "validation_bits_per_byte": evaluation.bits_per_byte})
        return evaluation

    def _save(self) -> None:
        save_run(self.out, self.model, self.optimizers, step=self.step, tokenizer_file=self._shards.tokenizer_file)

    def _learning_rate(self) -> float:
        return self.recipe.optimizer.learning_rate * learning_rate_factor(
            self.step,
            steps=self.recipe.steps,
            warmup_steps=self.recipe.warmup_steps,
            cooldown_share=self.recipe.cooldown_share,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda")


def _device(recipe: Recipe) -> str:
    has_cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not has_cuda:
        raise RecipeError("device is cuda, which is not on this machine; choose cpu or auto")
    return ("cuda" if has_cuda else "cpu") if recipe.device == "auto" else recipe.device
