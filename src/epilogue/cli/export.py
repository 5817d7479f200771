"""`epilogue export`: a checkpoint in another program's format. A format is one line of FORMATS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from epilogue.checkpoint import WEIGHT_TYPES, GPTQFormat, export_gguf, export_gptq, export_hf, load_checkpoint
from epilogue.cli.progress import Watch
from epilogue.cli.settings import BUNDLED_MODEL, BUNDLED_NAME, in_words, named_size
from epilogue.errors import RequestError

_HF_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was asked for."""

    source: str | Path
    """A checkpoint's folder, a .gguf, or its hub id."""
    out: Path
    weight_type: str
    """One of the format's types; empty if it is the source's own."""
    push_to: str | None
    """Where on the hub it goes afterwards."""
    on_progress: Callable[[int, int], None]
    """To be called with tensors written and their number."""
    note: Callable[[str], None]
    """To be told what whoever uses the result should know."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one format is written."""

    write: Callable[[Export], None]
    suffix: str | None = None
    """Of OUT, if that alone tells the format."""
    types: tuple[str, ...] = ()
    """What --type may be."""
    default_type: str = ""
    can_push: bool = False


def _write_gguf(export: Export) -> None:
    export_gguf(export.source, export.out, weight_type=export.weight_type, on_progress=export.on_progress)


def _write_hf(export: Export) -> None:
    dtype = _HF_TYPES[export.weight_type] if export.weight_type else None
    done = export_hf(export.source, export.out, dtype=dtype, push_to=export.push_to)
    for difference in done.misread:
        export.note(f"note: plain transformers gets this wrong, epilogue.hf does not: {difference}")
    if done.url:
        export.note(f"uploaded to {done.url}")


def _gptq_writer(format_name: GPTQFormat) -> Callable[[Export], None]:
    def write(export: Export) -> None:
        export_gptq(load_checkpoint(export.source), export.out, format=format_name)

    return write


FORMATS: Mapping[str, Format] = {
    "gguf": Format(write=_write_gguf, suffix=".gguf", types=WEIGHT_TYPES, default_type="f16"),
    "hf": Format(write=_write_hf, types=tuple(_HF_TYPES), can_push=True),
    "gptq": Format(write=_gptq_writer("gptq")),
    "gptq_v2": Format(write=_gptq_writer("gptq_v2")),
    "kobold": Format(write=_gptq_writer("kobold")),
}
"""By the name that --format has."""


def run_export(model: str, out: Path, *, format_name: str | None, weight_type: str | None, push_to: str | None) -> None:
    """Write a model in another format; the path goes to stdout when the file is whole.

    Raises:
        RequestError: an unknown format or type, or the name of an architecture, which has no weights.
        CheckpointError: the model cannot be read, or not be written in this format.
    """
    name = format_name or _format_of(out)
    if name not in FORMATS:
        raise RequestError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    chosen = FORMATS[name]
    type_name = _type_of(name, chosen, weight_type)
    if push_to is not None and not chosen.can_push:
        raise RequestError(f"--push-to is of hf, and this is {name}; leave it out")
    console = Console(stderr=True, highlight=False, markup=False)
    with Watch(console, "writing", unit="tensors") as watch:

        def on_progress(done: int, total: int) -> None:
            watch.update(done, f"of {total:,}")

        notes: list[str] = []
        chosen.write(
            Export(
                source=_source(model),
                out=out,
                weight_type=type_name,
                push_to=push_to,
                on_progress=on_progress,
                note=notes.append,
            )
        )
    for note in notes:
        console.print(note, style="dim", soft_wrap=True)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob("*")))
    console.print(f"{in_words(size)} written, read back and found the same")
    print(out)


def _format_of(out: Path) -> str:
    for name, known in FORMATS.items():
        if known.suffix is not None and out.suffix.lower() == known.suffix:
            return name
    raise RequestError(f"the name {out.name!r} does not tell a format; give --format, one of {', '.join(FORMATS)}")


def _type_of(name: str, chosen: Format, weight_type: str | None) -> str:
    if weight_type is None:
        return chosen.default_type
    if weight_type not in chosen.types:
        wanted = f"one of {', '.join(chosen.types)}" if chosen.types else "left out"
        raise RequestError(f"--type of {name} must be {wanted}, got {weight_type!r}")
    return weight_type


def _source(model: str) -> str | Path:
    if model == BUNDLED_NAME and not Path(model).exists():
        return BUNDLED_MODEL
    if named_size(model):
        raise RequestError(
            f"{model} is the name of an architecture, without weights; give a checkpoint's folder or its owner/name"
            f" on the hub, or {BUNDLED_NAME} for the model that comes along"
        )
    return model
