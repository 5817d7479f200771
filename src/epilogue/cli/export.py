"""`epilogue export`: a checkpoint in another program's format. A format is one line of FORMATS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from epilogue.checkpoint import WEIGHT_TYPES, export_gguf
from epilogue.cli.progress import Watch
from epilogue.cli.settings import BUNDLED_MODEL, in_words, named_size
from epilogue.errors import RequestError

_BUNDLED_NAME = "bundled"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was asked for."""

    source: str | Path
    """A checkpoint's folder, a .gguf, or its hub id."""
    out: Path
    weight_type: str
    """One of the format's types; empty if it has none."""
    on_progress: Callable[[int, int], None]
    """To be called with tensors written and their number."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one format is written."""

    write: Callable[[Export], None]
    suffix: str | None = None
    """Of OUT, if that alone tells the format."""
    types: tuple[str, ...] = ()
    """What --type may be."""
    default_type: str = ""


def _write_gguf(export: Export) -> None:
    export_gguf(export.source, export.out, weight_type=export.weight_type, on_progress=export.on_progress)


FORMATS: Mapping[str, Format] = {
    "gguf": Format(write=_write_gguf, suffix=".gguf", types=WEIGHT_TYPES, default_type="f16"),
}
"""By the name that --format has."""


def run_export(model: str, out: Path, *, format_name: str | None, weight_type: str | None) -> None:
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
    console = Console(stderr=True, highlight=False, markup=False)
    with Watch(console, "writing", unit="tensors") as watch:

        def on_progress(done: int, total: int) -> None:
            watch.update(done, f"of {total:,}")

        chosen.write(Export(source=_source(model), out=out, weight_type=type_name, on_progress=on_progress))
    if out.is_file():
        console.print(f"{in_words(out.stat().st_size)} written, read back and found the same")
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
    if model == _BUNDLED_NAME and not Path(model).exists():
        return BUNDLED_MODEL
    if named_size(model):
        raise RequestError(
            f"{model} is the name of an architecture, without weights; give a checkpoint's folder or its owner/name"
            f" on the hub, or {_BUNDLED_NAME} for the model that comes along"
        )
    return model
