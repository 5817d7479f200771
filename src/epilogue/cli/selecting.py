"""`epilogue prepare --filter`: the books of the sources that are worth training on."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console

from epilogue.errors import BookError, ShardError


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What the command line says of the filter; None where it says nothing."""

    language: str | None
    genre: str | None
    least_words: int | None
    catalogues: list[Path] | None
    held_out: list[str] | None
    names_file: Path | None
    executor: str | None
    workers: int | None
    partition: str | None


def select_sources(sources: list[Path], out: Path, given: FilterOptions, *, is_asked: bool) -> list[Path]:
    """The sources themselves or, if the filter is asked for, the folder of the books that it has kept.

    Raises:
        BookError: a source cannot be read, a package lacks, or OUT.books holds another selection.
        SystemExit: interrupted, or submitted to a cluster that will run it later.
        typer.BadParameter: an option that takes effect with --filter only, or of an impossible value.
    """
    if not is_asked:
        if any(value is not None for value in asdict(given).values()):
            raise typer.BadParameter("the options of the filter need --filter")
        return sources
    if out.exists():
        raise ShardError(f"{out} exists already; remove it or choose another place")
    console = Console(stderr=True, highlight=False, markup=False)
    try:
        books = _select([str(source) for source in sources], out, given, console)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on with what is missing")
        raise SystemExit(130) from None
    if books is None:
        console.print(f"submitted; when the jobs have run: epilogue prepare {_folder(out)}/books --out {out}")
        raise SystemExit(0)
    report = json.loads((_folder(out) / "report.json").read_text(encoding="utf-8"))
    console.print(f"{report['kept']:,} of {report['books']:,} books kept; why: {_folder(out) / 'report.html'}")
    if not report["kept"]:
        raise BookError(f"no book passed the filter; {_folder(out) / 'report.html'} says why")
    return [books]


def _select(sources: Sequence[str], out: Path, given: FilterOptions, console: Console) -> Path | None:
    from epilogue.corpus import Cluster, Selection, Wanted, select_books

    wanted = {"language": given.language, "genre": given.genre, "least_words": given.least_words}
    cluster = {
        "kind": given.executor,
        "workers": given.workers or os.cpu_count(),
        "partition": given.partition,
    }
    selection = Selection(
        sources=sources,
        wanted=Wanted(**{name: value for name, value in wanted.items() if value is not None}),  # type: ignore[arg-type]
        catalogues=given.catalogues or (),
        held_out=given.held_out or (),
        held_out_names=_lines(given.names_file) if given.names_file else (),
    )
    return select_books(
        selection,
        _folder(out),
        Cluster(**{name: value for name, value in cluster.items() if value is not None}),  # type: ignore[arg-type]
        on_stage=lambda name, num_tasks: console.print(f"{name} books, {num_tasks} tasks", style="dim"),
    )


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".books")


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
