"""A run's folder: step checkpoints that are complete or absent, the newest of them to go on from, and the log."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from epilogue.checkpoint import load_adapter, load_checkpoint, load_config, save_adapter, save_checkpoint
from epilogue.data.publish import begin_folder, publish_folder, remove_folder
from epilogue.errors import CheckpointError, RecipeError
from epilogue.model import MPT, MPTConfig, adapters, config_to_dict
from epilogue.train.spikes import SpikeGuard

_STATE = "training_state.pt"
_LOG = "log.jsonl"
_KEEP = 2
_STEP = re.compile(r"step-(\d{7,})")
# What a config says besides the arithmetic and the shapes.
_ASIDE = {"attn_impl", "init_config", "use_cache"}


def save_run(
    folder: Path,
    model: MPT,
    optimizers: list[Optimizer],
    guard: SpikeGuard,
    *,
    step: int,
    tokenizer_file: Path,
    base: str | None = None,
) -> Path:
    """Save model (fp32), optimizers and guard as ``folder/step-N``, then drop all but the newest two.

    Of a model with adapters these alone are saved, with the name of the ``base`` they stand beside.

    A step that is there already is kept as it is. A crash or Ctrl-C at any moment leaves the older steps whole; what
    was written by then is cleared away here or by the next save.

    Raises:
        CheckpointError: the files cannot be written.
    """
    for stale in folder.glob("step-*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step-{step:07d}"
    if not final.exists():
        partial = begin_folder(final)
        try:
            if base is not None and _is_adapted(model):
                save_adapter(partial, model, base=base, tokenizer_file=tokenizer_file)
            else:
                save_checkpoint(
                    partial, model.state_dict(), model.config, dtype=torch.float32, tokenizer_file=tokenizer_file
                )
            moments = [optimizer.state_dict() for optimizer in optimizers]
            state = {"step": step, "optimizers": moments, "guard": guard.state()}
            torch.save(state, partial / _STATE)
            publish_folder(partial)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError | RuntimeError):  # torch.save reports a full disk as the latter
                raise CheckpointError(f"{final} cannot be written ({_line(error)}); make room and go on") from error
            raise
    for old in _steps(folder)[:-_KEEP]:
        remove_folder(old)
    return final


def resume_run(step_folder: Path, model: MPT, optimizers: list[Optimizer], guard: SpikeGuard) -> int:
    """Load a step into model, optimizers and guard and return its number.

    Rates, decay and the like stay as the optimizers have them, so a changed recipe takes effect.

    Raises:
        RecipeError: the step is of another architecture or of another optimizer.
        CheckpointError: the step is damaged.
    """
    if found := _differences(load_config(step_folder), model.config):
        raise RecipeError(
            f"{step_folder} is of another model than the recipe ({found}); go on with the recipe it was made with, "
            "or choose another out"
        )
    weights = None if _is_adapted(model) else load_checkpoint(step_folder).model.state_dict()
    try:
        state = torch.load(step_folder / _STATE, map_location=model.device, weights_only=True)
        step, saved = int(state["step"]), [(s["state"], _members(s)) for s in state["optimizers"]]
        guard.load(state["guard"])
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{step_folder / _STATE} is damaged ({_line(error)}); remove {step_folder} to go on from an older step"
        ) from error
    if [members for _, members in saved] != [_members(optimizer.state_dict()) for optimizer in optimizers]:
        raise RecipeError(
            f"{step_folder} was made with another optimizer than the recipe's; go on with the recipe it was made with, "
            "or choose another out"
        )
    if weights is None:
        load_adapter(step_folder, model)
    else:
        model.load_state_dict(weights)
    for optimizer, (moments, _) in zip(optimizers, saved, strict=True):
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def newest_step(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    steps = _steps(folder)
    return steps[-1] if steps else None


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


def step_of(step_folder: Path | None) -> int:
    """Steps done in what was saved there; 0 for nothing."""
    return 0 if step_folder is None else int(step_folder.name.removeprefix("step-"))


def _is_adapted(model: MPT) -> bool:
    return any(True for _ in adapters(model))


def _steps(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of)


def _members(state: dict[str, Any]) -> list[Any]:
    """Which parameters each group of a saved optimizer has, and what it keeps for each of them."""
    return [group["params"] for group in state["param_groups"]]


def _differences(came: MPTConfig, wanted: MPTConfig) -> str:
    one, other = (_flat(config) for config in (came, wanted))
    return ", ".join(f"{k}: {one.get(k)} there, {other.get(k)} here" for k in other if one.get(k) != other.get(k))


def _flat(config: MPTConfig) -> dict[str, Any]:
    fields = {name: value for name, value in config_to_dict(config).items() if name not in config.extra}
    fields |= fields.pop("attn_config")
    return {name: value for name, value in fields.items() if name not in _ASIDE}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
