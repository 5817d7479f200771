"""How a request gets from the queue into the engine: its text becomes tokens, finds what is known of it, and room.

What needs no engine is done in threads beside it: turning a novel into tokens takes tenths of a second, and reading a
state through takes as long as its disk does. What follows is posted back to the engine's thread.
"""

import logging
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from epilogue.engine import PAGE_TOKENS, Engine, Found, Library
from epilogue.errors import CapacityError, StateError
from epilogue.server.book import Book
from epilogue.server.job import Job
from epilogue.server.known_scores import KnownScores
from epilogue.server.protocol import QueueFullError
from epilogue.server.shelf import Shelf
from epilogue.text import Tokenizer

_log = logging.getLogger("epilogue.server")
T = TypeVar("T")


class Admission:
    """Lets requests begin.

    Args:
        engine: which they want to get into.
        tokenizer: the model's.
        shelf: whose unused books make room, and take in what is found on disk.
        known_scores: of texts that were scored.
        post: has something done for a request in the engine's thread.
        most_tokens: the longest text that there is memory for when there is no other.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        shelf: Shelf,
        known_scores: KnownScores,
        *,
        post: Callable[[Job, Callable[[], None]], None],
        most_tokens: int,
    ) -> None:
        self._engine, self._tokenizer, self._shelf = engine, tokenizer, shelf
        self._known_scores, self._post, self._most_tokens = known_scores, post, most_tokens
        self._without_room: list[Job] = []
        self._helpers = ThreadPoolExecutor(2, thread_name_prefix="epilogue helper")

    def admit(self, job: Job) -> None:
        """Let a request begin as soon as can be. What goes wrong is raised where ``post`` does its work."""
        vocab_size = self._engine.model.config.vocab_size
        self._beside(job, lambda: job.prepare(self._tokenizer, vocab_size=vocab_size), lambda _: self._look_around(job))

    def try_again(self) -> None:
        """Pages may have come free: let those begin that found no room."""
        blocked, self._without_room = self._without_room, []
        for job in blocked:
            self._post(job, lambda job=job: self._look_around(job))  # type: ignore[misc]

    def close(self) -> None:
        """Wait until nothing is done beside the engine any more."""
        self._helpers.shutdown()

    def _beside(self, job: Job, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Do something in another thread, and go on with it in the engine's."""

        def on_done(done: "Future[T]") -> None:
            self._post(job, lambda: then(done.result()))

        self._helpers.submit(work).add_done_callback(on_done)

    def _look_around(self, job: Job) -> None:
        """See what is open of a text; if most is not, what is on disk of it."""
        if not self._enter(job):
            return
        assert job.sequence is not None
        library, num_known = self._shelf.library, job.sequence.table.num_tokens
        if library is None or job.sequence.num_pending < self._shelf.least_tokens:
            job.begin()
            return
        self._beside(
            job,
            lambda: self._find(library, job.ids, least_tokens=num_known + PAGE_TOKENS),
            lambda found: self._go_on_from(job, found),
        )

    def _enter(self, job: Job) -> bool:
        """Put a text into the engine, closing unused ones for as long as it does not fit; False if it must wait.

        Raises:
            CapacityError: it does not fit.
            QueueFullError: it does not fit now, and no pages are about to come free.
        """
        while True:
            try:
                job.enter(self._engine, self._known_scores)
                return True
            except CapacityError:
                if self._shelf.make_room():
                    continue
                if not self._shelf.is_saving:
                    self._refuse_for_now(job)
                    raise
                # A state that is being written holds pages until it is.
                self._without_room.append(job)
                return False

    def _refuse_for_now(self, job: Job) -> None:
        num_tokens = len(job.ids) + job.generation.params.max_new_tokens
        if self._engine.pages.num_held and num_tokens <= self._most_tokens:
            raise QueueFullError(
                f"the memory that {num_tokens} tokens need is other requests' now; try again in a few seconds"
            ) from None

    def _find(self, library: Library, ids: list[int], *, least_tokens: int) -> Found | None:
        while True:
            try:
                return library.find(self._engine, ids, least_tokens=least_tokens)
            except StateError as error:  # it is gone now
                _log.warning("%s", error)
            except OSError as error:
                _log.warning("no book is looked for on disk: %s", error)
                return None

    def _go_on_from(self, job: Job, found: Found | None) -> None:
        if found is not None:
            self._open(job, self._shelf.open(found))
        else:
            job.begin()

    def _open(self, job: Job, opening: Generator[None, None, Book]) -> None:
        """A step of it, and the next when the other requests had their turn."""
        try:
            next(opening)
        except StopIteration:
            self._begin(job)
        except (StateError, CapacityError) as error:
            _log.warning("a kept book is read again: %s", error)
            self._begin(job)
        else:
            self._post(job, lambda: self._open(job, opening))

    def _begin(self, job: Job) -> None:
        """With what has been opened."""
        if self._enter(job):
            job.begin()
