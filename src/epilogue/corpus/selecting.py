"""Books found to books worth training on: plans a selection, runs it, and picks up one that was interrupted."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epilogue.corpus.catalogue import read_catalogue
from epilogue.corpus.comparing import BOOKS
from epilogue.corpus.contamination import hold_out
from epilogue.corpus.executors import Cluster, StagePlan, require_cluster, run_stages
from epilogue.corpus.judging import CATALOGUE_FILE, HELD_OUT_FILE, Wanted
from epilogue.corpus.reading import read_unit
from epilogue.corpus.sources import Unit, list_catalogues, list_units, share_out
from epilogue.corpus.work_files import write_json
from epilogue.errors import BookError

# Of the selection's rules: texts selected by another version may be others.
VERSION = 1
TASK_BYTES = 8 << 20  # small enough for two workers to end together
_PLAN, _WORK = "plan.json", "work"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which books, and what is wanted of them.

    Attributes:
        sources: files, archives, folders and ``hf:owner/name``.
        wanted: language, genre and length.
        catalogues: of Project Gutenberg; those beside the books are found without being named.
        held_out: books to keep out, as files or folders of them.
        held_out_names: more of them by id, ``gutenberg:NUMBER`` or "title by author".
    """

    sources: Sequence[str]
    wanted: Wanted = field(default_factory=Wanted)
    catalogues: Sequence[Path] = ()
    held_out: Sequence[str] = ()
    held_out_names: Sequence[str] = ()


def select_books(
    selection: Selection,
    folder: Path,
    cluster: Cluster | None = None,
    *,
    on_stage: Callable[[str, int], None] = lambda name, num_tasks: None,
) -> Path | None:
    """Write the books worth training on, in the order of the sources, and the report on all of them.

    In ``folder`` stand afterwards ``books/books-NNNNN.jsonl.zst``, ``report.json`` and ``report.html``, the same bytes
    for the same sources whatever the number of workers. A selection that was interrupted goes on at the tasks that
    are missing when it is called again. ``on_stage`` is called before each stage with its name and number of tasks.

    Returns:
        The folder of the books; None on Slurm, where they will stand when the submitted jobs have run.

    Raises:
        BookError: a source is missing or damaged, a package lacks, or ``folder`` holds another selection.
        ValueError: see `Wanted` and `Cluster`.
    """
    cluster = cluster or Cluster()
    require_cluster(cluster)
    tasks = share_out(list_units(selection.sources), task_bytes=TASK_BYTES)
    work, books = folder / _WORK, folder / BOOKS
    _begin(folder, _plan(selection, tasks))
    if not books.exists():
        _write_tables(selection, work)
        run_stages(_stages(selection, tasks, folder), cluster, work / "logs", on_stage)
        if cluster.kind == "slurm":
            return None
    shutil.rmtree(work, ignore_errors=True)
    return books


def _plan(selection: Selection, tasks: Sequence[Sequence[Unit]]) -> dict[str, Any]:
    """What the results depend on."""
    return {
        "version": VERSION,
        "wanted": selection.wanted.as_dict(),
        "catalogues": [str(path) for path in _catalogues(selection)],
        "held_out": [unit.as_dict() for unit in list_units(selection.held_out)],
        "held_out_names": list(selection.held_out_names),
        "tasks": [[unit.as_dict() for unit in task] for task in tasks],
    }


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Put the plan into the folder, or find it there."""
    file = folder / _PLAN
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != plan:
            raise BookError(
                f"{folder} holds a selection of other books or by other rules; remove it or choose another place"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise BookError(f"{folder} exists already and is no selection of books; remove it or choose another place")
    else:
        write_json(file, plan)


def _write_tables(selection: Selection, work: Path) -> None:
    """What every worker needs: the catalogue, and the index of the books held out."""
    if not (work / CATALOGUE_FILE).exists():
        entries = [entry.as_dict() for path in _catalogues(selection) for entry in read_catalogue(path)]
        write_json(work / CATALOGUE_FILE, entries)
    if not (work / HELD_OUT_FILE).exists():
        books = (book for unit in list_units(selection.held_out) for book in read_unit(unit) if not book.dropped)
        hold_out(books, selection.held_out_names).save(work / HELD_OUT_FILE)


def _catalogues(selection: Selection) -> list[Path]:
    return [*selection.catalogues, *list_catalogues(selection.sources)]


def _stages(selection: Selection, tasks: Sequence[Sequence[Unit]], folder: Path) -> list[StagePlan]:
    from epilogue.corpus.steps import judging_steps, later_steps

    work = folder / _WORK
    first = StagePlan(name="judging", steps=judging_steps(tasks, selection.wanted, work), num_tasks=len(tasks))
    later = later_steps(folder, work, len(tasks))
    return [first, *(StagePlan(name=name, steps=[step], num_tasks=number) for name, step, number in later)]
