"""`epilogue train`: a recipe to a checkpoint."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from epilogue.train import Evaluation, Progress, Trainer, read_recipe


def run_train(recipe_file: Path, *, overrides: list[str], as_json: bool) -> None:
    """Train with a progress bar on stderr; Ctrl-C saves the step reached."""
    console = Console(stderr=True)
    recipe = read_recipe(recipe_file, overrides=overrides)
    trainer = Trainer(recipe)
    if trainer.step:
        console.print(f"going on with {recipe.out} at step {trainer.step:,}")
    results: list[dict[str, Any]] = []
    with _bar(console) as bar:
        task = bar.add_task("training", total=recipe.steps, completed=trainer.step, loss=float("nan"), rate=0.0)

        def on_step(progress: Progress) -> None:
            bar.update(task, completed=progress.step, loss=progress.loss, rate=progress.tokens_per_s)

        def on_evaluation(step: int, evaluation: Evaluation) -> None:
            line = f"step {step:,}: {evaluation.loss:.4f} nats/token, {evaluation.bits_per_byte:.4f} bits/byte held out"
            bar.console.print(line, highlight=False)
            results.append({"step": step, "loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte})

        try:
            newest = trainer.run(on_step=on_step, on_evaluation=on_evaluation)
        except KeyboardInterrupt:
            bar.stop()
            console.print(f"stopped at step {trainer.step:,}, saved; the same command goes on from there")
            raise SystemExit(130) from None
    if as_json:
        print(json.dumps({"checkpoint": str(newest), "evaluations": results}))
    else:
        print(newest)


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tok/s"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,
    )
