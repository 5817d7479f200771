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
from epilogue.train import Evaluation, Progress, Trainer, read_recipe


def run_train(recipe_file: Path, *, overrides: list[str], as_json: bool) -> None:
    """Train with the progress on stderr and the newest checkpoint's folder on stdout; Ctrl-C saves the step reached.

    Raises:
        EpilogueError: the recipe, its data or its start cannot be used.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    recipe = read_recipe(recipe_file, overrides=overrides)
    choose_device(recipe.device)
    trainer = Trainer(recipe)
    console.print(_opening_line(trainer), style="dim", soft_wrap=True)
    results: list[dict[str, Any]] = []
    with Watch(console, "training", unit="steps", total=recipe.steps, done=trainer.step) as watch:

        def on_step(progress: Progress) -> None:
            watch.update(progress.step, _progress_line(progress))

        def on_evaluation(step: int, evaluation: Evaluation) -> None:
            line = f"step {step:,}: {evaluation.loss:.4f} nats/token, {evaluation.bits_per_byte:.4f} bits/byte held out"
            console.print(line, soft_wrap=True)
            results.append({"step": step, "loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte})

        try:
            newest = trainer.run(on_step=on_step, on_evaluation=on_evaluation, peak_flop_per_s=_peak(trainer))
        except KeyboardInterrupt:
            console.print(f"stopped at step {trainer.step:,}, saved; the same command goes on from there")
            raise SystemExit(130) from None
    print(json.dumps({"checkpoint": str(newest), "evaluations": results}) if as_json else newest)


def _progress_line(progress: Progress) -> str:
    mfu = "" if progress.mfu is None else f", MFU {progress.mfu:.1%}"
    return (
        f"loss {progress.loss:.3f}, {progress.bits_per_byte:.3f} bits/byte, {progress.tokens_per_s:,.0f} tok/s{mfu},"
        f" {in_words(progress.memory_bytes)}"
    )


def _peak(trainer: Trainer) -> float | None:
    """What this machine's matrix products reach, in the dtype they are trained in; measured if a step is left to do."""
    if trainer.step >= trainer.recipe.steps:
        return None
    dtype = torch.bfloat16 if trainer.device == "cuda" else torch.float32
    return measure_flop_per_s(torch.device(trainer.device), dtype)


def _opening_line(trainer: Trainer) -> str:
    recipe, millions = trainer.recipe, num_parameters(trainer.model.config) / 1e6
    if trainer.step >= recipe.steps:
        return f"{recipe.out} has come to step {trainer.step:,} of {recipe.steps:,} already; there is nothing to do"
    begin = f"going on at step {trainer.step:,} of" if trainer.step else "training"
    return (
        f"{begin} {recipe.out}: {millions:,.1f} million parameters on {trainer.device},"
        f" {recipe.steps:,} steps of {recipe.batch_tokens:,} tokens, seed {recipe.seed}"
    )
