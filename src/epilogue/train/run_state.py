"""A run's folder: step checkpoints that are complete or absent, and the newest of them to go on from."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from epilogue.checkpoint import load_checkpoint, save_checkpoint
from epilogue.errors import CheckpointError
from epilogue.model import MPT

_STATE = "training_state.pt"
_KEEP = 2


def save_run(
    folder: Path, model: MPT, optimizers: list[Optimizer], *, step: int, tokenizer_file: Path, dtype: torch.dtype
) -> Path:
    """Save model and optimizers as ``folder/step-N``, then drop all but the newest two.

    The step's folder is written under another name and renamed when it is whole.
    """
    final = folder / f"step-{step:07d}"
    partial = folder / f"{final.name}.partial"
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    save_checkpoint(partial, model.state_dict(), model.config, dtype=dtype, tokenizer_file=tokenizer_file)
    torch.save({"step": step, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, partial / _STATE)
    partial.rename(final)
    for old in _steps(folder)[:-_KEEP]:
        shutil.rmtree(old)
    return final


def resume_run(folder: Path, model: MPT, optimizers: list[Optimizer]) -> int:
    """Load the newest step into model and optimizers and return its number; 0 when there is none.

    Raises:
        CheckpointError: the newest step is damaged or of another architecture.
    """
    steps = _steps(folder)
    if not steps:
        return 0
    model.load_state_dict(load_checkpoint(steps[-1], device=model.device).model.state_dict())
    try:
        state = torch.load(steps[-1] / _STATE, map_location=model.device, weights_only=True)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{steps[-1]} cannot be gone on with ({error}); remove it to go on from an older step"
        ) from error
    return int(state["step"])


def newest_step(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def append_log(folder: Path, entry: dict[str, Any]) -> None:
    """Add one line to the run's log.jsonl."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.suffix != ".partial")
