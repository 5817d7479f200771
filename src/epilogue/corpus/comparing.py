"""Stages 2 to 4 of a selection: which books repeat others, the report, the books that stay, and their place."""

import json
import shutil
from pathlib import Path

from epilogue.corpus.editions import Repeat, find_repeats
from epilogue.corpus.json_lines import JsonLinesWriter, read_json_lines
from epilogue.corpus.report import Report
from epilogue.corpus.report_page import report_page
from epilogue.corpus.work_files import read_editions, read_records, repeats_file, texts_file, write_json

BOOKS, REPORT, PAGE = "books", "report.json", "report.html"


def compare_books(work: Path, num_tasks: int) -> None:
    """Find books that repeat others among all that are left, write which, and the report.

    Memory: the sketches of all books, about 8 bytes for every 256 words each, and one name for every book.
    """
    editions, names, tasks = [], [], []
    for task in range(num_tasks):
        editions += list(read_editions(work, task))
        kept = [record for record in read_records(work, task) if not record["dropped"]]
        names += [record["title"] or record["id"] for record in kept]
        tasks += [(task, place) for place in range(len(kept))]
    repeats = find_repeats(editions)
    for task in range(num_tasks):
        places = [place for i, (of, place) in enumerate(tasks) if of == task and i in repeats]
        write_json(repeats_file(work, task), places)
    _write_report(work, num_tasks, repeats, names)


def _write_report(work: Path, num_tasks: int, repeats: dict[int, Repeat], names: list[str]) -> None:
    report, number = Report(), 0
    for task in range(num_tasks):
        for record in read_records(work, task):
            if not record["dropped"]:
                if (repeat := repeats.get(number)) is not None:
                    record["dropped"] = repeat.kind
                    record["why"] = f"{repeat.share:.0%} of its wording is in {names[repeat.of]!r}, which stays"
                number += 1
            report.add(record)
    summary = report.summary()
    write_json(work / REPORT, summary)
    (work / PAGE).write_text(report_page(summary), encoding="utf-8")


def keep_books(task: int, work: Path) -> None:
    """Copy the books of a task that repeat no other to the results."""
    superfluous = set(json.loads(repeats_file(work, task).read_text(encoding="utf-8")))
    with JsonLinesWriter(work / BOOKS / f"books-{task:05d}.jsonl.zst") as out:
        for place, (_, fields) in enumerate(read_json_lines(texts_file(work, task))):
            if place not in superfluous:
                out.write(fields)


def publish(folder: Path, work: Path) -> None:
    """Move the results out of the work folder, the books last: where they stand, everything is done."""
    for name in (REPORT, PAGE, BOOKS):
        if (work / name).exists():
            shutil.move(work / name, folder / name)
