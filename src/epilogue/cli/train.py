"""`epilogue train`: a recipe to a checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from epilogue.cli.progress import Watch
from epilogue.cli.settings import choose_device, in_words
from epilogue.evals import measure_flop_per_s
from epilogue.model import num_parameters
from epilogue.train import Evaluation, Progress, StoppedAtOnce, Trainer, joined_processes, read_recipe


def run_train(recipe_file: Path, *, overrides: list[str], as_json: bool) -> None:
    """Train with the progress on stderr and the newest checkpoint's folder on stdout.

    Ctrl-C and SIGTERM save the step reached and leave with 130 and with 0. Of several processes (torchrun) the first
    one speaks.

    Raises:
        EpilogueError: the recipe, its data or its start cannot be used.
    """
    recipe = read_recipe(recipe_file, overrides=overrides)
    with joined_processes(choose_device(recipe.device)):
        code = _train(Trainer(recipe), as_json=as_json)
    if code is not None:
        raise SystemExit(code)


def _train(trainer: Trainer, *, as_json: bool) -> int | None:
    """The exit code of a run that was stopped; None for one that has come to its end."""
    is_first = trainer.mesh.is_first
    console = Console(stderr=True, highlight=False, markup=False, quiet=not is_first)
    console.print(_opening_line(trainer), style="dim", soft_wrap=True)
    results: list[dict[str, Any]] = []
    steps = trainer.recipe.steps
    with Watch(console, "training", unit="steps", total=steps, done=trainer.step, is_shown=is_first) as watch:

        def on_step(progress: Progress) -> None:
            watch.update(progress.step, _progress_line(progress))

        def on_evaluation(step: int, evaluation: Evaluation) -> None:
            line = f"step {step:,}: {evaluation.loss:.4f} nats/token, {evaluation.bits_per_byte:.4f} bits/byte held out"
            console.print(line, soft_wrap=True)
            results.append({"step": step, "loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte})

        try:
            newest = trainer.run(on_step=on_step, on_evaluation=on_evaluation, peak_flop_per_s=_peak(trainer))
        except StoppedAtOnce:
            console.print("stopped at once; the same command goes on from the step that was saved last")
            return 130
        except (KeyboardInterrupt, SystemExit) as stop:
            console.print(f"stopped at step {trainer.step:,}, saved; the same command goes on from there")
            return 130 if isinstance(stop, KeyboardInterrupt) else 0
    if is_first:
        print(json.dumps({"checkpoint": str(newest), "evaluations": results}) if as_json else newest)
    return None


def _progress_line(progress: Progress) -> str:
    mfu = "" if progress.mfu is None else f", MFU {progress.mfu:.1%}"
    return (
        f"loss {progress.loss:.3f}, {progress.bits_per_byte:.3f} bits/byte, {progress.tokens_per_s:,.0f} tok/s{mfu},"
        f" {in_words(progress.memory_bytes)}"
    )


def _peak(trainer: Trainer) -> float | None:
    """What matrix products of as many such devices reach, in the dtype they are trained in.

    Measured in the first process, which reports it, and if a step is left to do.
    """
    if trainer.step >= trainer.recipe.steps or not trainer.mesh.is_first:
        return None
    dtype = torch.bfloat16 if trainer.device == "cuda" else torch.float32
    return measure_flop_per_s(torch.device(trainer.device), dtype) * trainer.mesh.size


def _opening_line(trainer: Trainer) -> str:
    recipe, millions = trainer.recipe, num_parameters(trainer.model.config) / 1e6
    if trainer.step >= recipe.steps:
        return f"{recipe.out} has come to step {trainer.step:,} of {recipe.steps:,} already; there is nothing to do"
    begin = f"going on at step {trainer.step:,} of" if trainer.step else "training"
    return (
        f"{begin} {recipe.out}: {millions:,.1f} million parameters on {_where(trainer)},"
        f" {recipe.steps:,} steps of {recipe.batch_tokens:,} tokens, seed {recipe.seed}"
    )


def _where(trainer: Trainer) -> str:
    mesh = trainer.mesh
    if mesh.size == 1:
        return trainer.device
    return f"{mesh.size} x {trainer.device} (replicate {mesh.replicate}, shard {mesh.shard}, context {mesh.context})"
