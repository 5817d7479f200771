"""The training loop: any number of processes, gradient accumulation, resumable to the bit."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from epilogue.data import Batch, Shards, WindowLoader
from epilogue.errors import RecipeError, TrainingError
from epilogue.train.batches import Loss, part_of, share_of_loss
from epilogue.train.checkpoints import Checkpoints, resume
from epilogue.train.memory import recompute_of
from epilogue.train.mesh import make_mesh
from epilogue.train.metrics import Evaluation, evaluate
from epilogue.train.optimizer import make_optimizers, set_learning_rate
from epilogue.train.progress import Meter, Progress
from epilogue.train.recipe import Recipe
from epilogue.train.run_folder import append_log, log_resumption, newest_step, step_of
from epilogue.train.sharding import whole
from epilogue.train.spikes import SpikeGuard
from epilogue.train.stages import Stages
from epilogue.train.start import make_model
from epilogue.train.stopping import StoppedAtOnce, StopRequests
from epilogue.train.trackers import Tracker, open_trackers, require_trackers


class Trainer:
    """Trains one model by one recipe; a run found in the recipe's folder is gone on with.

    The processes that have met (``joined_processes``) make one trainer each and call all its methods together; on any
    number of them the run is the same but for rounding. fp32 weights on CUDA compute matrices and attention in bf16 by
    autocast. The state after a step depends on the recipe, the step and the processes alone, so an interrupted run ends
    with the bits of an uninterrupted one (on CUDA as far as its kernels repeat themselves).

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
        self._stages = Stages(recipe)
        config = recipe.model.config(self._shards.tokenizer.vocab_size, self._stages.most_context_tokens)
        if not config.attn_config.alibi and any(stage.alibi_bias_max for stage in self._stages.all):
            raise RecipeError(
                "stages set alibi_bias_max and the model has no ALiBi; leave it out, or train one that has"
            )
        self.mesh = make_mesh(recipe, config, self.device)
        self._loaders = [self._make_loaders(held_out, number) for number in range(len(self._stages.all))]
        self._stop = StopRequests(self.mesh)
        self._checkpoints = Checkpoints(
            self.out,
            self.mesh,
            keep=recipe.keep_steps,
            tokenizer_file=self._shards.tokenizer_file,
            base=recipe.model.initialize_from,
        )
        newest = self._newest()
        self.model = make_model(recipe, config, self._shards.tokenizer, self.mesh, device=self.device, newest=newest)
        self._first_bias_max = config.attn_config.alibi_bias_max
        self._stage = self._stages.all[0]
        self._enter(step_of(newest) - 1)
        self.model.set_recompute(recompute_of(recipe.memory))
        self.model.set_epsilon(recipe.epsilon)
        self.optimizers = make_optimizers(self.model, recipe.optimizer, seed=recipe.seed)
        self._guard = SpikeGuard(recipe.optimizer.spike_z)
        self.step = 0 if newest is None else resume(newest, self.model, self.optimizers, self._guard, self.mesh)
        self._trackers: list[Tracker] = []
        self._loss = self._make_loss()

    def run(
        self,
        *,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
        peak_flop_per_s: float | None = None,
    ) -> Path:
        """Train to the recipe's last step and return the newest checkpoint; nothing is left to do in a finished run.

        ``peak_flop_per_s`` is what all devices together can do at best; MFU is told if it is given.

        Ctrl-C and SIGTERM save the step reached and are raised as KeyboardInterrupt and as SystemExit with code 0; a
        second Ctrl-C saves nothing. A save comes before the evaluation of its step, so one that is interrupted is not
        made up for. The callbacks are called in the first process.

        Raises:
            TrainingError: loss or gradients are no longer finite, or the loss has risen for good; the weights are as
                the last good step left them.
            CheckpointError: a checkpoint cannot be written.
        """
        if self.mesh.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.step < self.recipe.steps:
                log_resumption(self.out, self.step)
                self._trackers = open_trackers(self.recipe, step=self.step)
        with self._stop.noted(), ExitStack() as stack:
            stack.callback(self._checkpoints.wait)
            stack.callback(self._close_trackers)
            try:
                self._go_on(self._meter(peak_flop_per_s), on_step, on_evaluation)
            except StoppedAtOnce:
                raise
            except (KeyboardInterrupt, SystemExit):
                self._save()
                raise
        newest = self._newest()
        assert newest is not None
        return newest

    def evaluate(self) -> Evaluation:
        """Loss on the held-out shards at the context length of the stage."""
        self.model.eval()

        def nats(share: Batch) -> Tensor:
            self._stop.check()
            with self._autocast():
                return share_of_loss(self.model.loss, share, num_targets=1, device=self.device)

        return evaluate(nats, self._held_out, num_tokens=self.recipe.evaluate_tokens, mesh=self.mesh)

    def _go_on(
        self, meter: Meter, on_step: Callable[[Progress], None], on_evaluation: Callable[[int, Evaluation], None]
    ) -> None:
        """Train to the last step."""
        batches = None
        while self.step < self.recipe.steps:
            if self._enter(self.step) or batches is None:
                batches = self._windows.batches(start=self.step - self._stage.first_step)
            started_s = time.perf_counter()
            batch = next(batches)
            loss, rate = self._train_step(batch), self.optimizers[0].param_groups[0]["lr"]
            time_s = time.perf_counter() - started_s
            if self.mesh.is_first:
                progress = meter.report(
                    self.step, batch, loss=loss, time_s=time_s, learning_rate=rate, num_skipped=self._guard.num_skipped
                )
                self._log(progress.entry())
                on_step(progress)
            if self._is_due(self.recipe.save_every_steps):
                self._save()
            if self._is_due(self.recipe.evaluate_every_steps):
                evaluation = self.evaluate()
                if self.mesh.is_first:
                    self._log_evaluation(evaluation)
                    on_evaluation(self.step, evaluation)

    def _train_step(self, batch: Batch) -> float:
        """One optimizer step, whole or not at all; the loss before it."""
        loss = self._accumulate_gradients(batch)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm))
        loss_before, norm_before = torch.stack([loss, norm]).tolist()
        if not (math.isfinite(loss_before) and math.isfinite(norm_before)):
            raise TrainingError(
                f"step {self.step + 1} has a loss of {loss_before} and gradients of norm {norm_before} on "
                f"{self._books_of_step()}, and was not taken; lower optimizer.learning_rate or raise warmup_steps, and "
                f"remove steps from {self.out} to go on from before the trouble began"
            )
        set_learning_rate(self.optimizers, self._stages.learning_rate(self.step))
        z = self._guard.z_of_spike(loss_before)  # of sums over all processes, so all of them decide alike
        for optimizer in self.optimizers if z is None else []:
            optimizer.step()
        self.step += 1
        if z is not None and self.mesh.is_first:
            append_log(self.out, {"step": self.step, "skipped_z": round(z, 2), "num_skipped": self._guard.num_skipped})
        self.model.zero_grad(set_to_none=True)
        return float(loss_before)

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss over the batch's targets, which is returned, one micro-batch after the other."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(self._seed_of_step())
        total = torch.zeros((), device=self.device)
        for rows in batch.split(self._stage.micro_batch_tokens // self._stage.context_tokens):
            self._stop.check()
            share = part_of(rows, self.mesh)
            with self._autocast(), self._offloaded():
                loss = share_of_loss(self._loss, share, num_targets=batch.num_targets, device=self.device)
            loss.backward()
            total += loss.detach()
        return self.mesh.total(total)

    def _seed_of_step(self) -> int:
        """Of dropout, for a model that has it: another one in every step and process."""
        numbers = [self.recipe.seed, self.step, self.mesh.rank]
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _make_loss(self) -> Loss:
        """The model's loss, compiled if the recipe and the device say so."""
        if not self.recipe.compile or self.device != "cuda":
            return self.model.loss
        if self.mesh.size == 1:
            return torch.compile(self.model.loss, dynamic=False)
        # What gathers a block's weights runs between blocks and is not to be compiled.
        for block in self.model.transformer.blocks:
            block.compile(dynamic=False)
        return self.model.loss

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

    def _log_evaluation(self, evaluation: Evaluation) -> None:
        self._log({"validation_loss": evaluation.loss, "validation_bits_per_byte": evaluation.bits_per_byte})

    def _close_trackers(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    def _save(self) -> None:
        self._enter(self.step - 1)  # a step that was begun may have brought other slopes than the last one learned by
        self._checkpoints.save(self.step, self.model, self.optimizers, self._guard)

    def _newest(self) -> Path | None:
        """The newest step, the same for all processes."""
        found = newest_step(self.out) if self.mesh.is_first else None
        said = self.mesh.as_first_says(None if found is None else str(found))
        return None if said is None else Path(said)

    def _make_loaders(self, held_out: Shards, number: int) -> tuple[WindowLoader, WindowLoader]:
        stage = self._stages.all[number]
        tokens, rows = stage.context_tokens, stage.batch_tokens // stage.context_tokens
        return (
            WindowLoader(
                self._shards, num_tokens=tokens, batch=rows, seed=self.recipe.seed,
                rank=self.mesh.reader, num_ranks=self.mesh.num_readers,
            ),
            WindowLoader(held_out, num_tokens=tokens, batch=1),
        )  # fmt: skip

    def _enter(self, step: int) -> bool:
        """Make loaders and slopes those of a step, 0-based; whether the stage is another one than before.

        What has been trained by N steps has the slopes of step N - 1, and of step 0 before any.
        """
        step = max(0, step)
        number = self._stages.number_at(step)
        before, self._stage = self._stage, self._stages.all[number]
        self._windows, self._held_out = self._loaders[number]
        bias_max = self._stages.alibi_bias_max(step, at_first=self._first_bias_max)
        if bias_max != self.model.config.attn_config.alibi_bias_max:
            self.model.set_alibi_bias_max(bias_max)
        return self._stage is not before

    def _books_of_step(self) -> str:
        """The books in the step's batch, for a person to look at."""
        names = self._windows.books_of(self.step - self._stage.first_step)
        rest = len(names) - 3
        return f"books {', '.join(names[:3])}" + (f" and {rest} more" if rest > 0 else "")

    def _autocast(self) -> torch.autocast:
        is_wanted = self.device == "cuda" and self.recipe.weights == "fp32"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=is_wanted)

    def _offloaded(self) -> AbstractContextManager[object]:
        if not self.recipe.memory.offload:
            return ExitStack()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.device == "cuda")


def _device(recipe: Recipe) -> str:
    has_cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not has_cuda:
        raise RecipeError("device is cuda, which is not on this machine; choose cpu or auto")
    return ("cuda" if has_cuda else "cpu") if recipe.device == "auto" else recipe.device
