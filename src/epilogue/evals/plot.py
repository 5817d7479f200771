"""Pictures of runs and evaluations: loss curves, loss by position, the same targets by context; needs [plot]."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epilogue.errors import RequestError
from epilogue.evals.run_curves import RunCurves, read_run

_BITS = "bits per byte"
_SMOOTHED_SHARE = 0.02  # of all steps, that the smoothed loss looks back


@dataclass(kw_only=True)
class Drawn:
    """What goes into a picture: each list a panel, left out if it is empty."""

    runs: list[RunCurves] = field(default_factory=list)
    by_position: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Rows of ``epilogue evaluate --json``, by the name of their file."""
    by_context: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """The same of ``epilogue evaluate --contexts ... --json``."""


def read_drawn(sources: Sequence[Path]) -> Drawn:
    """Runs' folders, each with the evaluations (.json) in it, and files of evaluations.

    Raises:
        RequestError: a source is neither.
    """
    drawn = Drawn()
    for source in sources:
        if source.is_dir():
            drawn.runs.append(read_run(source))
            for path in sorted(source.glob("*.json")):
                _add(drawn, path, f"{source.resolve().name} {path.stem}")
        elif not _add(drawn, source, source.stem):
            raise RequestError(
                f"{source} is neither a run's folder nor a file that `epilogue evaluate --json` printed; give one"
            )
    return drawn


def draw(drawn: Drawn) -> Any:
    """The picture, a matplotlib figure with a panel for each kind of curve.

    Raises:
        RequestError: nothing to draw, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("pictures need matplotlib; pip install 'epilogue[plot]'") from error
    runs = [run for run in drawn.runs if run.training or run.validation]
    every: list[tuple[Callable[[Any, Any], None], Any]] = [
        (_draw_runs, runs),
        (_draw_positions, drawn.by_position),
        (_draw_contexts, drawn.by_context),
    ]
    panels = [(panel, curves) for panel, curves in every if curves]
    if not panels:
        raise RequestError("there is nothing to draw yet; wait for the first step, or give an evaluation's file")
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    for axes, (panel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, curves)
        axes.set_ylabel(_BITS)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _add(drawn: Drawn, path: Path, name: str) -> bool:
    """Whether the file holds an evaluation."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_one = False
    for kind, panel in (("by_position", drawn.by_position), ("by_context", drawn.by_context)):
        if isinstance(found, dict) and isinstance(found.get(kind), list):
            panel[name] = found[kind]
            is_one = True
    return is_one


def _draw_runs(axes: Any, runs: list[RunCurves]) -> None:
    for run in runs:
        [line] = axes.plot(*_columns(_smoothed(run.training)), label=f"{run.name}, training")
        axes.plot(*_columns(run.training), color=line.get_color(), alpha=0.2, linewidth=0.6)
        if run.validation:
            axes.plot(
                *_columns(run.validation), "o--", color=line.get_color(), markersize=4, label=f"{run.name}, held out"
            )
    axes.set_xlabel("step")
    axes.set_title("loss")


def _draw_positions(axes: Any, evaluations: dict[str, list[dict[str, float]]]) -> None:
    for name, rows in evaluations.items():
        firsts = [max(1, row["from_position"]) for row in rows]
        axes.step(firsts, [row["bits_per_byte"] for row in rows], where="post", marker="o", markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens before the predicted one")
    axes.set_title("loss by position")


def _draw_contexts(axes: Any, evaluations: dict[str, list[dict[str, float]]]) -> None:
    for name, rows in evaluations.items():
        contexts = [row["context_tokens"] for row in rows]
        changes = [row["change"] for row in rows]
        errors = [row["change_error"] or 0 for row in rows]
        axes.errorbar(contexts, changes, yerr=errors, marker="o", markersize=4, capsize=3, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of the window that is read")
    axes.set_title("the same targets: change against the shortest window, 95%")


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """A mean that forgets, without the pull of its beginning."""
    keep = math.exp(-1 / max(1.0, _SMOOTHED_SHARE * len(points)))
    total, weight, smooth = 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append((step, total / weight))
    return smooth
