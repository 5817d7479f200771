"""Steps of a run on disk: written by all processes while training goes on, and read by any number of them.

A step is a folder of safetensors in the layout of PyTorch's distributed checkpoints: each process's parts of weights
and optimizer state in files of its own, and no pickle (docs/formats.md). ``epilogue.checkpoint`` reads it as any model.
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.optim import Optimizer

from epilogue.checkpoint import adapter_weights, load_config, save_adapter
from epilogue.checkpoint.dtypes import prevailing_dtype
from epilogue.checkpoint.files import CONFIG, read_json
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.checkpoint.save import config_json
from epilogue.checkpoint.steps import STEP_FILE, step_files
from epilogue.data.publish import begin_folder, partial_of, publish_folder
from epilogue.errors import CheckpointError, RecipeError
from epilogue.model import MPT, MPTConfig, adapters, config_to_dict
from epilogue.train.mesh import Mesh
from epilogue.train.moments import empty_moments, moments, owners
from epilogue.train.run_folder import clear_partial_steps, drop_old_steps, step_folder
from epilogue.train.sharding import whole
from epilogue.train.spikes import SpikeGuard

_MOST_BYTES_OF_A_FILE = 4_000_000_000
# What a config says besides the arithmetic and the shapes.
_ASIDE = {"attn_impl", "init_config", "use_cache"}

# torch says so at every save of a process that is alone, in a thread, where a filter cannot be set for a while.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoints:
    """Writes the steps of one run, one after the other, in a thread; all processes call it alike.

    Args:
        folder: of the run, on a disk that all processes see.
        mesh: the processes.
        keep: how many of the newest steps stay.
        tokenizer_file: copied into every step.
        base: where the weights came from that adapters stand beside.
    """

    def __init__(self, folder: Path, mesh: Mesh, *, keep: int, tokenizer_file: Path, base: str | None) -> None:
        self._folder, self._mesh, self._keep = folder, mesh, keep
        self._tokenizer_file, self._base = tokenizer_file, base
        self._writing: tuple[Path, Future[Any]] | None = None

    def save(self, step: int, model: MPT, optimizers: Sequence[Optimizer], guard: SpikeGuard) -> None:
        """Copy the state to the host, then have ``folder/step-N`` written behind the caller's back.

        Of a model with adapters these alone are saved, in PEFT's files, which the first process writes at once.

        A step that is there already stays as it is. Whatever ends the program, and when, leaves the older steps
        whole. The step before is waited for.

        Raises:
            CheckpointError: a step cannot be written.

        Memory: on the host, this process's part of the state, and one file of it.
        """
        self.wait()
        final = step_folder(self._folder, step)
        if self._mesh.as_first_says("there" if final.exists() else None):
            return
        # In this order: asked for their state, modules put their parameters back into parts.
        weights, added = model.state_dict(), {name: whole(x) for name, x in adapter_weights(model).items()}
        state = moments(model, optimizers) if added else weights | moments(model, optimizers)
        if self._mesh.is_first:
            self._begin(final, model, added)
        self._mesh.as_first_says(None)  # the folder is there before anybody writes
        about = {
            "format_version": 1,
            "step": step,
            "optimizers": owners(model, optimizers),
            "guard": guard.state(),
        }
        writing = async_save(
            state,
            storage_writer=_StepWriter(final, about, file_of_tensor=_files(state), keep=self._keep),
            process_group=self._mesh.host_group,
            no_dist=self._mesh.size == 1,
        )
        assert isinstance(writing, Future)
        self._writing = final, writing

    def _begin(self, final: Path, model: MPT, added: dict[str, Tensor]) -> None:
        """Make the folder, and write what one process can: all but the tensors in parts."""
        try:
            clear_partial_steps(self._folder)
            partial = begin_folder(final)
            if added:
                assert self._base is not None
                save_adapter(partial, model, base=self._base, tokenizer_file=self._tokenizer_file, weights=added)
            else:
                shutil.copyfile(self._tokenizer_file, partial / TOKENIZER)
                _write_json(partial / CONFIG, config_json(model.config, prevailing_dtype(model.parameters())))
        except OSError as error:
            raise _unwritten(final, error) from error

    def wait(self) -> None:
        """Return when what was begun is on the disk.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._writing is None:
            return
        final, writing = self._writing
        try:
            writing.result()
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            if self._mesh.is_first:
                clear_partial_steps(self._folder)
            raise _unwritten(final, first) from error
        finally:
            if writing.done():
                self._writing = None


class _StepWriter(HuggingFaceStorageWriter):
    """Gives the folder its name when every process has written its part."""

    def __init__(self, final: Path, about: dict[str, Any], *, file_of_tensor: dict[str, int], keep: int) -> None:
        super().__init__(str(partial_of(final)), fqn_to_index_mapping=file_of_tensor, save_distributed=True)
        self._final, self._about, self._keep = final, about, keep

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called in the first process, once everything is written."""
        partial = partial_of(self._final)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.glob("*.safetensors"))}
        _write_json(partial / STEP_FILE, self._about | {"files": sizes})
        publish_folder(partial)
        drop_old_steps(self._final.parent, keep=self._keep)


def resume(folder: Path, model: MPT, optimizers: Sequence[Optimizer], guard: SpikeGuard, mesh: Mesh) -> int:
    """Load a step, by however many processes it was written, into all of these and return its number.

    Adapters are not among it: they are loaded with what they stand beside (``make_model``).

    Rates, decay and the like stay as the optimizers have them, so a changed recipe takes effect.

    Raises:
        RecipeError: the step is of another architecture or of another optimizer.
        CheckpointError: the step is damaged.
    """
    if found := _differences(load_config(folder), model.config):
        raise RecipeError(
            f"{folder} is of another model than the recipe ({found}); go on with the recipe it was made with, "
            "or choose another out"
        )
    about = read_json(folder / STEP_FILE)
    step_files(folder, about)
    if about.get("optimizers") != owners(model, optimizers):
        raise RecipeError(
            f"{folder} was made with another optimizer than the recipe's; go on with the recipe it was made with, "
            "or choose another out"
        )
    reader = HuggingFaceStorageReader(str(folder))
    try:
        empty_moments(model, optimizers, stored=reader.read_metadata().state_dict_metadata)
        kept, is_adapted = moments(model, optimizers), any(True for _ in adapters(model))
        state: dict[str, Tensor] = kept if is_adapted else model.state_dict() | kept
        guard.load(about["guard"])
        load(state, storage_reader=reader, process_group=mesh.host_group, no_dist=mesh.size == 1)
        return int(about["step"])
    except (OSError, SafetensorError, CheckpointException, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged ({_line(error)}); remove it to go on from an older step") from error


def _files(state: dict[str, Tensor]) -> dict[str, int]:
    """The number of the file in which each tensor lies, from 1: full ones, in the order of the state."""
    numbers: dict[str, int] = {}
    number, filled = 1, 0
    for name, tensor in state.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if filled and filled + num_bytes > _MOST_BYTES_OF_A_FILE:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += num_bytes
    return numbers


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _differences(came: MPTConfig, wanted: MPTConfig) -> str:
    one, other = (_flat(config) for config in (came, wanted))
    return ", ".join(f"{k}: {one.get(k)} there, {other.get(k)} here" for k in other if one.get(k) != other.get(k))


def _flat(config: MPTConfig) -> dict[str, Any]:
    fields = {name: value for name, value in config_to_dict(config).items() if name not in config.extra}
    fields |= fields.pop("attn_config")
    return {name: value for name, value in fields.items() if name not in _ASIDE}


def _unwritten(final: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{final} cannot be written ({_line(error)}); make room and go on")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
