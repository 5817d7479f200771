"""What a run's log.jsonl says so far, as curves; the run may be under way."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epilogue.errors import RequestError

_LOG = "log.jsonl"


@dataclass(kw_only=True)
class RunCurves:
    """Bits per byte by step, of one run."""

    name: str
    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


def read_run(folder: Path) -> RunCurves:
    """The curves of a run's folder; steps that were lost and done again count once, a line half written not at all.

    Raises:
        RequestError: the folder has no log.
    """
    path = folder / _LOG
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RequestError(
            f"{folder} has no {_LOG} that can be read ({error.strerror}); give the out folder of a recipe"
        ) from error
    curves = RunCurves(name=folder.resolve().name)
    for entry in filter(None, map(_entry, lines)):
        if "resumed_at" in entry:
            for curve in (curves.training, curves.validation):
                curve[:] = [point for point in curve if point[0] <= entry["resumed_at"]]
        elif "bits_per_byte" in entry:
            curves.training.append((entry["step"], entry["bits_per_byte"]))
        elif "validation_bits_per_byte" in entry:
            curves.validation.append((entry["step"], entry["validation_bits_per_byte"]))
    return curves


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
