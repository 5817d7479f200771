"""A run's folder: its steps, each complete or absent, and its log."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from epilogue.data.publish import partial_of, remove_folder

_LOG = "log.jsonl"
_STEP = re.compile(r"step-(\d{7,})")


def step_folder(folder: Path, step: int) -> Path:
    """Where a step of a run lies."""
    return folder / f"step-{step:07d}"


def newest_step(folder: Path) -> Path | None:
    """The newest complete step of a run."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def drop_old_steps(folder: Path, *, keep: int) -> None:
    """Remove all complete steps but the newest."""
    for old in _steps(folder)[:-keep]:
        remove_folder(old)


def clear_partial_steps(folder: Path) -> None:
    """Remove what was written of steps by programs that were killed."""
    for stale in folder.glob(partial_of(Path("step-*")).name):
        shutil.rmtree(stale, ignore_errors=True)


def step_of(step_folder: Path | None) -> int:
    """Steps done in what was saved there; 0 for nothing."""
    return 0 if step_folder is None else int(step_folder.name.removeprefix("step-"))


def append_log(folder: Path, entry: dict[str, Any]) -> None:
    """Add one line to the run's log.jsonl."""
    with (folder / _LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


def log_resumption(folder: Path, step: int) -> None:
    """Note in a log, if there is one, that what it holds for steps past this one was lost and that they come again.

    Also ends a last line that a crash cut off.
    """
    log = folder / _LOG
    if not log.exists():
        return
    if not log.read_bytes().endswith(b"\n"):
        with log.open("a", encoding="utf-8") as out:
            out.write("\n")
    append_log(folder, {"resumed_at": step})


def _steps(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of)
