"""The training loop: any number of processes, gradient accumulation, resumable to the bit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from epilogue.data import Shards, WindowLoader
from epilogue.errors import RecipeError, TrainingError
from epilogue.train.batches import Batch, share_of_loss, shares
from epilogue.train.checkpoints import Checkpoints, resume
from epilogue.train.mesh import make_mesh
from epilogue.train.metrics import Evaluation, evaluate
from epilogue.train.optimizer import make_optimizers, set_learning_rate
from epilogue.train.recipe import Recipe
from epilogue.train.run_folder import append_log, log_resumption, newest_step
from epilogue.train.schedule import learning_rate_factor
from epilogue.train.sharding import whole
from epilogue.train.start import make_model
from epilogue.train.stopping import StopRequests


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a step tells its watcher."""

    step: int
    """Steps done."""
    steps: int
    loss: float
    """Nats a token of this step's batch, before its update."""
    tokens_per_s: float
    """Of this step, saving and evaluation not counted."""
    learning_rate: float


class Trainer:
    """Trains one model by one recipe; a run found in the recipe's folder is gone on with.

    The processes that have met (``joined_processes``) make one trainer each and call all its methods together; on any
    number of them the run is the same but for rounding. Weights are fp32; on CUDA the arithmetic of matrices and
    attention is bf16 by autocast. The state after a step depends on the recipe, the step and the processes alone, so
    an interrupted run ends with the bits of an uninterrupted one (on CUDA as far as its kernels repeat themselves).

    Raises:
        RecipeError: the recipe cannot be run, or the run found was made by one with another model.
        ShardError, CheckpointError: its data, its start or the run found cannot be read.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.out = Path(recipe.out)
        self.device = _device(recipe)
        self._shards, held_out = Shards(recipe.train_shards), Shards(recipe.validation_shards)
        if self._shards.tokenizer.fingerprint != held_out.tokenizer.fingerprint:
            raise RecipeError(
                f"{recipe.train_shards} and {recipe.validation_shards} have different tokenizers; "
                "prepare one with the other's (--tokenizer)"
            )
        rows = recipe.batch_tokens // recipe.context_tokens
        self._windows = WindowLoader(self._shards, num_tokens=recipe.context_tokens, batch=rows, seed=recipe.seed)
        self._held_out = WindowLoader(held_out, num_tokens=recipe.context_tokens, batch=1)
        config = recipe.model.config(self._shards.tokenizer.vocab_size, recipe.context_tokens)
        self.mesh = make_mesh(recipe, config, self.device)
        self._stop = StopRequests(self.mesh)
        self._checkpoints = Checkpoints(self.out, self.mesh, keep=recipe.keep_steps)
        newest = self._newest()
        self.model = make_model(
            recipe, config, self._shards.tokenizer, self.mesh, device=self.device, is_fresh=newest is None
        )
        self.optimizers = make_optimizers(self.model, recipe.optimizer)
        self.step = 0 if newest is None else resume(newest, self.model, self.optimizers, self.mesh)
        self._loss = self._make_loss()

    def run(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
    ) -> Path:
        """Train to the recipe's last step and return the newest checkpoint; nothing is left to do in a finished run.

        Ctrl-C and SIGTERM save the step reached and are raised as KeyboardInterrupt and as SystemExit with code 0. A
        save comes before the evaluation of its step, so one that is interrupted is not made up for. The callbacks are
        called in the first process.

        Raises:
            TrainingError: loss or gradients are no longer finite; the weights are as the last good step left them.
            CheckpointError: a checkpoint cannot be written.
        """
        if self.mesh.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.step < self.recipe.steps:
                log_resumption(self.out, self.step)
        batches = self._windows.batches(start=self.step)
        with self._stop.noted():
            try:
                while self.step < self.recipe.steps:
                    started_s = time.perf_counter()
                    loss = self._train_step(Batch(*next(batches)))
                    if self.mesh.is_first:
                        on_step(self._report(loss, time.perf_counter() - started_s))
                    if self._is_due(self.recipe.save_every_steps):
                        self._save()
                    if self._is_due(self.recipe.evaluate_every_steps):
                        evaluation = self.evaluate()
                        if self.mesh.is_first:
                            self._log_evaluation(evaluation)
                            on_evaluation(self.step, evaluation)
            except (KeyboardInterrupt, SystemExit):
                self._save()
                raise
            finally:
                self._checkpoints.wait()
        newest = self._newest()
        assert newest is not None
        return newest

    def evaluate(self) -> Evaluation:
        """Loss on the held-out shards at the recipe's context length."""
        self.model.eval()

        def nats(share: Batch) -> Tensor:
            self._stop.check()
            with self._autocast():
                return share_of_loss(self.model.loss, share, num_targets=1, device=self.device)

        return evaluate(nats, self._held_out, num_tokens=self.recipe.evaluate_tokens, mesh=self.mesh)

    def _train_step(self, batch: Batch) -> float:
        """One optimizer step, whole or not at all; the loss before it."""
        loss = self._accumulate_gradients(batch)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm))
        loss_before, norm_before = torch.stack([loss, norm]).tolist()
        if not (math.isfinite(loss_before) and math.isfinite(norm_before)):
            raise TrainingError(
                f"step {self.step + 1} has a loss of {loss_before} and gradients of norm {norm_before}, and was not "
                f"taken; lower optimizer.learning_rate or raise warmup_steps, and remove steps from {self.out} to go "
                "on from before the trouble began"
            )
        set_learning_rate(self.optimizers, self._learning_rate())
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.model.zero_grad(set_to_none=True)
        return float(loss_before)

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss over the batch, which is returned, one micro-batch after the other."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(self._seed_of_step())
        rows = self.recipe.micro_batch_tokens // self.recipe.context_tokens
        num_targets = batch.num_targets
        total = torch.zeros((), device=self.device)
        for share in shares(batch, self.mesh, rows=rows):
            self._stop.check()
            with self._autocast():
                loss = share_of_loss(self._loss, share, num_targets=num_targets, device=self.device)
            loss.backward()
            total += loss.detach()
        return self.mesh.total(total)

    def _seed_of_step(self) -> int:
        """Of dropout, for a model that has it: another one in every step and process."""
        numbers = [self.recipe.seed, self.step, self.mesh.rank]
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _make_loss(self) -> Callable[..., Tensor]:
        """The model's loss, compiled if the recipe and the device say so."""
        if not self.recipe.compile or self.device != "cuda":
            return self.model.loss
        if self.mesh.size == 1:
            return torch.compile(self.model.loss, dynamic=False)
        # What gathers a block's weights runs between blocks and is not to be compiled.
        for block in self.model.transformer.blocks:
            block.compile(dynamic=False)
        return self.model.loss

    def _report(self, loss: float, time_s: float) -> Progress:
        progress = Progress(
            step=self.step,
            steps=self.recipe.steps,
            loss=loss,
            tokens_per_s=self.recipe.batch_tokens / max(time_s, 1e-9),
            learning_rate=self.optimizers[0].param_groups[0]["lr"],
        )
        append_log(self.out, {"step": self.step, "loss": round(loss, 5), "tokens_per_s": round(progress.tokens_per_s)})
        return progress

    def _is_due(self, every_steps: int) -> bool:
        return self.step == self.recipe.steps or self.step % every_steps == 0

    def _log_evaluation(self, evaluation: Evaluation) -> None:
        entry = {"step": self.step, "bits_per_byte": evaluation.bits_per_byte, "validation_loss": evaluation.loss}
        append_log(self.out, entry)

    def _save(self) -> None:
        self._checkpoints.save(self.step, self.model, self.optimizers, tokenizer_file=self._shards.tokenizer_file)

    def _newest(self) -> Path | None:
        """The newest step, the same for all processes."""
        found = newest_step(self.out) if self.mesh.is_first else None
        said = self.mesh.as_first_says(None if found is None else str(found))
        return None if said is None else Path(said)

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
