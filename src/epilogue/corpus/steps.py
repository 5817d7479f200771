"""The selection as datatrove's pipeline steps; what the steps do is in other files. This one needs the extra `[data]`.

Stage 1, a task for each run of units: read and clean; check language, genre, quality and held-out books; write what the
comparison needs. Stage 2, one task: compare all that is left, and report. Stage 3, the tasks of stage 1: copy the books
that stay. Stage 4, one task: give the results their names.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from epilogue.corpus.books import SourceBook
from epilogue.corpus.comparing import compare_books, keep_books, publish
from epilogue.corpus.judging import (
    Wanted,
    check_genre,
    check_held_out,
    check_language,
    check_quality,
    load_catalogue,
    load_held_out,
)
from epilogue.corpus.reading import read_unit
from epilogue.corpus.sources import Unit
from epilogue.corpus.work_files import JudgedBooks

_BOOK = "book"

Documents = Iterable[Document]


class ReadBooks(PipelineStep):
    """Reads the units of a task; a book that cannot be read goes on as dropped."""

    type, name = "📖 - READ", "books"

    def __init__(self, tasks: Sequence[Sequence[Unit]]) -> None:
        super().__init__()
        self.tasks = tasks

    def run(self, data: Documents | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Every book of task ``rank``."""
        for unit in self.tasks[rank]:
            for book in read_unit(unit):
                self.stat_update("books")
                self.stat_update("characters", value=len(book.text), unit="book")
                yield Document(text=book.text, id=book.id, metadata={_BOOK: book})


class Check(PipelineStep):
    """Puts every book that is still kept to one check; dropped ones pass through, for the report."""

    type = "🔎 - CHECK"

    def __init__(self, name: str, check: Callable[[SourceBook], None]) -> None:
        self.name = name
        super().__init__()
        self.check = check

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents; those that fail have their reason."""
        for document in data:
            book = document.metadata[_BOOK]
            if not book.dropped:
                with self.track_time():
                    self.check(book)
                self.stat_update("dropped" if book.dropped else "kept")
            yield document


class KeepJudged(PipelineStep):
    """Puts what stage 2 and 3 need of every book into the task's files."""

    type, name = "💾 - WRITE", "judged books"

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Nothing comes out: the books' texts are on disk."""
        with JudgedBooks(self.work, rank) as judged:
            for document in data:
                judged.add(document.metadata[_BOOK])
        yield from ()


class Stage(PipelineStep):
    """A later stage: one call a task, which reads and writes files."""

    type = "🧮 - STAGE"

    def __init__(self, name: str, action: Callable[[int], None]) -> None:
        self.name = name
        super().__init__()
        self.action = action

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Nothing comes out."""
        with self.track_time("task"):
            self.action(rank)
        yield from ()


def judging_steps(tasks: Sequence[Sequence[Unit]], wanted: Wanted, work: Path) -> list[PipelineStep]:
    """Stage 1."""
    return [
        ReadBooks(tasks),
        Check("language", partial(check_language, wanted=wanted)),
        Check("genre", partial(_check_genre, wanted=wanted, work=work)),
        Check("quality", partial(check_quality, wanted=wanted)),
        Check("held-out books", partial(_check_held_out, work=work)),
        KeepJudged(work),
    ]


def later_steps(folder: Path, work: Path, num_tasks: int) -> list[tuple[str, PipelineStep, int]]:
    """Stages 2 to 4: name, step and number of tasks of each."""
    return [
        ("comparing", Stage("comparing", partial(_compare, work=work, num_tasks=num_tasks)), 1),
        ("keeping", Stage("keeping", partial(keep_books, work=work)), num_tasks),
        ("publishing", Stage("publishing", partial(_publish, folder=folder, work=work)), 1),
    ]


def _check_genre(book: SourceBook, wanted: Wanted, work: Path) -> None:
    check_genre(book, wanted, load_catalogue(work))


def _check_held_out(book: SourceBook, work: Path) -> None:
    check_held_out(book, load_held_out(work))


def _compare(rank: int, work: Path, num_tasks: int) -> None:
    compare_books(work, num_tasks)


def _publish(rank: int, folder: Path, work: Path) -> None:
    publish(folder, work)
