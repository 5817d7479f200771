"""The one thread that moves the engine: takes requests up, keeps them all going, and keeps books open between them."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from epilogue.engine import Engine, Sequence
from epilogue.errors import CapacityError, EpilogueError
from epilogue.server.job import Job, Listener
from epilogue.server.protocol import Generation
from epilogue.text import Tokenizer


class OnEnd(Protocol):
    """Told of every request that has ended, in the engine's thread."""

    def __call__(self, job: Job, *, outcome: str) -> None:
        """``outcome`` is done, cancelled or failed."""


class QueueFullError(EpilogueError):
    """As many requests wait as may; to be tried again later."""


class Worker:
    """Runs requests side by side on one engine.

    In a round every text that is being written grows by a token, and one that is being read by a chunk; the others
    write on for as long as the chunk took, so a long book halves their speed and no more. Texts stay open when their
    request is done, so that the next one reads only what is new; the longest unused are closed when pages run short.

    Args:
        engine: belongs to this thread from ``start`` on.
        tokenizer: the model's.
        most_waiting: requests that may wait to be taken up.
        most_active: requests that are worked on at once.
        most_books: texts that stay open without a request.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        most_waiting: int = 64,
        most_active: int = 8,
        most_books: int = 16,
    ) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.most_waiting, self.most_active, self.most_books = most_waiting, most_active, most_books
        self.on_end: OnEnd | None = None
        self._num_held_pages = 0
        self._most_tokens = engine.most_tokens()
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._books: list[Sequence] = []
        """The longest unused first."""
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="epilogue engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Cancel everything and wait until the thread has ended."""
        with self._changed:
            self._is_stopping = True
            for job in [*self._waiting, *self._active]:
                job.cancel()
            self._changed.notify()
        self._thread.join(timeout_s)

    def submit(self, generation: Generation, listener: Listener) -> Job:
        """Put a request into the queue; from any thread. The listener is told of it until Done or Failed.

        Raises:
            QueueFullError: too many wait, or the server is stopping.
        """
        job = Job(generation, listener)
        with self._changed:
            if self._is_stopping or len(self._waiting) >= self.most_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already; try again in a few seconds")
            self._waiting.append(job)
            self._changed.notify()
        return job

    @property
    def most_tokens(self) -> int:
        """The longest text that there is memory for."""
        return self._most_tokens

    @property
    def num_waiting(self) -> int:
        """Requests that are not taken up yet."""
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        """Requests that are being read or written."""
        return len(self._active)

    @property
    def num_books(self) -> int:
        """Texts that are open without a request."""
        return len(self._books)

    @property
    def num_held_pages(self) -> int:
        """Pages in use when a request last began or ended."""
        return self._num_held_pages

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._take_up()
                self._round()
        finally:
            # Also if this thread fails by a mistake of its own: nobody may wait for an answer that will not come.
            self._is_stopping = True
            for job in [*self._active, *self._waiting]:
                job.fail(QueueFullError("the server is stopping; try again when it is back"))
            for book in [*self._books, *(text for job in self._active for text in job.texts())]:
                self.engine.close(book)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._is_stopping or self._waiting or self._active):
                self._changed.wait()
            return not self._is_stopping or bool(self._active or self._waiting)

    def _take_up(self) -> None:
        while self._waiting and len(self._active) < self.most_active:
            job = self._waiting.popleft()
            self._active.append(job)
            if not job.is_cancelled:
                self._attempt(job, lambda job=job: self._begin(job))  # type: ignore[misc]

    def _begin(self, job: Job) -> None:
        """Take a request up, closing unused books for as long as it does not fit."""
        while True:
            try:
                return job.begin(self.engine, self.tokenizer)
            except CapacityError:
                if not self._books:
                    raise
                self.engine.close(self._books.pop(0))

    def _round(self) -> None:
        for job in [job for job in self._active if job.is_cancelled]:
            self._end(job)
        reading = [job for job in self._active if not job.is_read]
        chunk_s = 0.0
        if reading:
            start = time.monotonic()
            self._attempt(reading[0], lambda: reading[0].read(self.engine, self.tokenizer))
            chunk_s = time.monotonic() - start
            if reading[0] in self._active:  # the next chunk is another's
                self._active.remove(reading[0])
                self._active.append(reading[0])
        self._write(chunk_s)

    def _write(self, for_s: float) -> None:
        """A token of every text, and more until so much time is over."""
        start = time.monotonic()
        while True:
            for job in [job for job in self._active if job.is_read]:
                self._attempt(job, job.write)
                if job.is_done:
                    self._end(job)
            is_idle = not any(job.is_read for job in self._active)
            if is_idle or time.monotonic() - start >= for_s or any(job.is_cancelled for job in self._active):
                return

    def _attempt(self, job: Job, work: Callable[[], None]) -> None:
        """What goes wrong with one request is its own affair."""
        try:
            work()
        except Exception as error:
            self._drop(job, outcome="failed")
            job.fail(error)

    def _end(self, job: Job) -> None:
        # Told last: whoever hears of it may look at the queue.
        self._drop(job, outcome="done" if job.is_done else "cancelled")
        job.finish()

    def _drop(self, job: Job, *, outcome: str) -> None:
        if self.on_end is not None:
            self.on_end(job, outcome=outcome)
        self._active.remove(job)
        self._books.extend(job.texts())
        while len(self._books) > self.most_books:
            self.engine.close(self._books.pop(0))
        self._num_held_pages = self.engine.pages.num_held
