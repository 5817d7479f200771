"""The one thread that moves the engine: takes requests up, and keeps them all going."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from epilogue.engine import PAGE_TOKENS, Engine, Library
from epilogue.server.admission import Admission
from epilogue.server.free_memory import GiveBack
from epilogue.server.job import Job, Listener
from epilogue.server.known_scores import KnownScores
from epilogue.server.protocol import Generation, QueueFullError
from epilogue.server.shelf import Shelf
from epilogue.text import Tokenizer

T = TypeVar("T")


class OnEnd(Protocol):
    """Told of every request that has ended, in the engine's thread."""

    def __call__(self, job: Job, *, outcome: str) -> None:
        """``outcome`` is done, cancelled or failed."""


class Worker:
    """Runs requests side by side on one engine.

    In a round every text that is being written grows by a token, and one that is being read by a chunk; the others
    write on for as long as the chunk took, so a long book halves their speed and no more. What needs no engine, turning
    text into tokens and looking for a book on disk, is done in threads beside. Texts stay open when their request is
    done (``Shelf``), so that the next one reads only what is new.

    Where all places are taken and others wait, who was longest at work lets one of them go first, and goes on when its
    turn comes again: nobody waits for the end of somebody's novel. What it has read and written stays in pages
    meanwhile, so this is done only while requests hold less than half of them.

    Args:
        engine: belongs to this thread from ``start`` on.
        tokenizer: the model's.
        library: where books are kept on disk; None keeps them in memory alone.
        model_name: for people who look at what is kept.
        most_waiting: requests that may wait to be taken up.
        most_active: requests that are worked on at once.
        most_turn_s: so long a request is worked on before it lets one that waits go first.
        most_books: books that stay open without a request.
        least_tokens: fewer are read rather than looked for on disk, and not written to it.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        library: Library | None = None,
        model_name: str = "",
        most_waiting: int = 64,
        most_active: int = 8,
        most_turn_s: float = 30.0,
        most_books: int = 16,
        least_tokens: int = 2048,
    ) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.most_waiting, self.most_active, self.most_turn_s = most_waiting, most_active, most_turn_s
        self.on_end: OnEnd | None = None
        self.shelf = Shelf(
            engine,
            library,
            on_news=self._wake,
            model_name=model_name,
            least_tokens=least_tokens,
            most_books=most_books,
        )
        self._known_scores = KnownScores()
        self._num_held_pages = 0
        self._most_tokens = engine.most_tokens()
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._errands: deque[Callable[[], None]] = deque()
        """What other threads want done in this one."""
        self._changed = threading.Condition()
        self._is_closed = self._is_stopping = False
        self._admission = Admission(
            engine, tokenizer, self.shelf, self._known_scores, post=self._post, most_tokens=self._most_tokens
        )
        self._thread = threading.Thread(target=self._run, name="epilogue engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def refuse(self) -> None:
        """Take nothing new; what was asked for goes on. From any thread."""
        with self._changed:
            self._is_closed = True

    def cancel_all(self) -> None:
        """Let every request end with what it has; from any thread."""
        for job in self.jobs():
            job.cancel()

    def stop(self, *, timeout_s: float = 600.0) -> None:
        """Cancel everything, write to disk what has grown, and wait until the thread has ended."""
        self.refuse()
        self.cancel_all()
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def submit(self, generation: Generation, listener: Listener) -> Job:
        """Put a request into the queue; from any thread. The listener is told of it until Done or Failed.

        Raises:
            QueueFullError: too many wait, or the server is stopping.
        """
        job = Job(generation, listener, on_cancel=self._wake)
        with self._changed:
            if self._is_closed:
                raise _stopping()
            if len(self._waiting) >= self.most_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already; try again in a few seconds")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def ask(self, work: Callable[[], T]) -> "Future[T]":
        """Have something done in the engine's thread between two rounds; from any other.

        Raises:
            QueueFullError: the server is stopping.
        """
        answer: Future[T] = Future()

        def errand() -> None:
            try:
                result = work()
                self._count_pages()  # before it is told, or who hears of it may still see what was
                answer.set_result(result)
            except BaseException as error:
                answer.set_exception(error)

        with self._changed:
            if self._is_stopping:
                raise _stopping()
            self._errands.append(errand)
            self._changed.notify()
        return answer

    @property
    def most_tokens(self) -> int:
        """The longest text that there is memory for."""
        return self._most_tokens

    @property
    def num_waiting(self) -> int:
        """Requests that are not taken up yet, or let others go first."""
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        """Requests that are being read or written."""
        return len(self._active)

    @property
    def num_books(self) -> int:
        """Texts that are open without a request."""
        return self.shelf.num_texts

    @property
    def num_held_pages(self) -> int:
        """Pages in use."""
        return self._num_held_pages

    def jobs(self) -> list[Job]:
        """All requests, those that wait last; from any thread."""
        with self._changed:
            return [*self._active, *self._waiting]

    def _run(self) -> None:
        give_back = GiveBack()
        try:
            while self._wait_for_work():
                self._take_up()
                self._round()
                give_back.if_due()
        finally:
            # Also if this thread fails by a mistake of its own: nobody may wait for an answer that will not come.
            self._is_closed = self._is_stopping = True
            for job in self.jobs():
                texts = list(job.texts())
                job.fail(_stopping())
                for text in texts:
                    self.engine.close(text)
            self._active, self._waiting = [], deque()
            self._admission.close()
            self._run_errands()
            self.shelf.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._has_work():
                self._changed.wait()
            return not self._is_stopping or bool(self._active or self._waiting)

    def _has_work(self) -> bool:
        is_room = len(self._active) < self.most_active
        can_move = any(job.is_begun or job.is_cancelled for job in self._active)
        can_move = can_move or any(job.is_cancelled for job in self._waiting)
        return (
            self._is_stopping or can_move or bool(self._errands or self.shelf.has_news or (self._waiting and is_room))
        )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _take_up(self) -> None:
        for job in [job for job in self._waiting if job.is_cancelled]:
            self._end(job)
        if self._waiting and len(self._active) == self.most_active:
            self._give_way()
        while self._waiting and len(self._active) < self.most_active:
            with self._changed:
                job = self._waiting.popleft()
                self._active.append(job)
            job.turn_s = time.monotonic()
            if not (job.is_begun or job.is_cancelled):
                self._admission.admit(job)

    def _give_way(self) -> None:
        """Who was longest at work goes to the end of the queue, if their turn is over and there is memory for that."""
        job = min((job for job in self._active if job.is_begun), key=lambda job: job.turn_s, default=None)
        if job is None or time.monotonic() - job.turn_s < self.most_turn_s:
            return
        num_held = sum(int((text.table.ids_LKP >= 0).sum()) for job in self.jobs() for text in job.texts())
        if 2 * num_held < self.engine.pages.pool.num_pages:
            with self._changed:
                self._active.remove(job)
                self._waiting.append(job)

    def _post(self, job: Job, work: Callable[[], None]) -> None:
        """Have something done for a request in this thread; from any."""
        with self._changed:
            self._errands.append(lambda: self._attempt(job, work))
            self._changed.notify()

    def _round(self) -> None:
        self._run_errands()
        if self.shelf.has_news:
            self.shelf.settle()
            self._admission.try_again()
        for job in [job for job in self._active if job.is_cancelled]:
            self._end(job)
        reading = [job for job in self._active if job.is_begun and not job.is_read]
        chunk_s = 0.0
        if reading:
            start = time.monotonic()
            self._read(reading[0])
            chunk_s = time.monotonic() - start
        self._write(chunk_s)
        self._count_pages()

    def _run_errands(self) -> None:
        for _ in range(len(self._errands)):  # what these add is for the next round
            self._errands.popleft()()

    def _read(self, job: Job) -> None:
        """A chunk of one text; the next chunk is another's."""
        self._keep_free(self.engine.chunk_tokens)
        self._attempt(job, lambda: job.read(self.engine, self.tokenizer, self._known_scores))
        if job not in self._active:
            return
        with self._changed:
            self._active.remove(job)
            self._active.append(job)
        if job.is_read and job.sequence is not None and not job.generation.scores_prompt:
            self.shelf.note_read(job.sequence, title=job.generation.title)

    def _write(self, for_s: float) -> None:
        """A token of every text, and more until so much time is over."""
        start = time.monotonic()
        while True:
            self._keep_free(0)
            for job in [job for job in self._active if job.is_read]:
                self._attempt(job, job.write)
                if job.is_done:
                    self._end(job)
            is_idle = not any(job.is_read for job in self._active)
            if is_idle or time.monotonic() - start >= for_s or any(job.is_cancelled for job in self._active):
                return

    def _keep_free(self, num_read: int) -> None:
        """Close unused texts where the next step may need their pages: a page of every head where a text grows."""
        config, num_texts = self.engine.model.config, sum(len(job.writings) for job in self._active)
        num_columns = num_texts + num_read // PAGE_TOKENS + 2 * bool(num_read)
        self.shelf.keep_free(config.n_layers * config.kv_n_heads * num_columns)

    def _attempt(self, job: Job, work: Callable[[], None]) -> None:
        """What goes wrong with one request is its own affair; one that has ended meanwhile has no work."""
        if job not in self._active:
            return
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
        with self._changed:
            (self._active if job in self._active else self._waiting).remove(job)
        for text in job.texts():
            book = self.shelf.add(text, title=job.generation.title, saves=not job.generation.scores_prompt)
            job.book_id = book.id if book else None
        self._count_pages()

    def _count_pages(self) -> None:
        self._num_held_pages = self.engine.pages.num_held


def _stopping() -> QueueFullError:
    return QueueFullError("the server is stopping; try again when it is back")
