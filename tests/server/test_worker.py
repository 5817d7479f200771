"""What the worker promises whoever shares it: nobody waits for ever, nobody hears of another, no page is lost."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from epilogue.engine import Engine, SamplingParams
from epilogue.errors import CapacityError
from epilogue.server import QueueFullError, Worker
from epilogue.server.protocol import Begun, Done, Ended, Event, Failed, Generation, Piece, Reading
from epilogue.text import Tokenizer

PROMPT = "The wind went round to the north"
WAIT_S = 60


class Heard:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, *kinds: type) -> Event:
        def found() -> Event | None:
            return next((event for event in self.events if isinstance(event, kinds)), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, WAIT_S), self.events
        event = found()
        assert event is not None
        return event

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))


@pytest.fixture
def work(make_engine: Callable[..., Engine], tokenizer: Tokenizer) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*, engine: dict[str, Any] | None = None, **options: Any) -> Worker:
        worker = Worker(make_engine(**(engine or {})), tokenizer, **options)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()
        assert worker.engine.pages.num_held == 0


def asked(prompt: str = PROMPT, *, tokens: int = 10, seed: int = 1, **more: Any) -> Generation:
    return Generation(prompt=prompt, params=SamplingParams(max_new_tokens=tokens, seed=seed, ignore_eos=True), **more)


def test_many_at_once_get_what_they_would_get_alone(work: Callable[..., Worker]) -> None:
    alone = work(most_active=1)
    together = work(most_active=8)
    wanted, heard = [Heard() for _ in range(8)], [Heard() for _ in range(8)]
    for worker, listeners in ((alone, wanted), (together, heard)):
        for seed, listener in enumerate(listeners):
            worker.submit(asked(PROMPT * (1 + seed % 3), seed=seed, tokens=12), listener)
        for listener in listeners:
            listener.wait(Done)
    assert [listener.text for listener in heard] == [listener.text for listener in wanted]


def test_a_long_book_does_not_silence_another_text(work: Callable[..., Worker]) -> None:
    """The short text writes on between the chunks of the long one, which began first."""
    worker = work(engine={"chunk_tokens": 32, "num_pages": 2000})
    long, short = Heard(), Heard()
    job = worker.submit(asked(PROMPT * 300, tokens=1), long)
    long.wait(Reading)
    worker.submit(asked(tokens=5), short)
    short.wait(Done)
    assert not any(isinstance(event, Done) for event in long.events)
    job.cancel()
    long.wait(Done)


def test_a_cancelled_request_ends_with_what_it_has(work: Callable[..., Worker]) -> None:
    worker, heard = work(), Heard()
    job = worker.submit(asked(tokens=10_000), heard)
    heard.wait(Piece)
    job.cancel()
    heard.wait(Done)
    ended = heard.wait(Ended)
    assert isinstance(ended, Ended)
    assert ended.reason == "cancelled"
    assert 0 < ended.num_tokens < 10_000
    assert worker.num_active == 0


def test_a_request_that_waits_can_be_cancelled_too(work: Callable[..., Worker]) -> None:
    worker, first, second = work(most_active=1), Heard(), Heard()
    busy = worker.submit(asked(tokens=10_000), first)
    first.wait(Piece)
    waiting = worker.submit(asked(), second)
    waiting.cancel()
    busy.cancel()
    second.wait(Done)
    assert not any(isinstance(event, Begun | Piece) for event in second.events)


def test_a_full_queue_is_said_at_once(work: Callable[..., Worker]) -> None:
    worker, first = work(most_active=1, most_waiting=2), Heard()
    busy = worker.submit(asked(tokens=10_000), first)
    first.wait(Piece)
    waiting = [worker.submit(asked(), Heard()) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting already"):
        worker.submit(asked(), Heard())
    for job in (busy, *waiting):
        job.cancel()


def test_one_that_fails_is_no_other_ones_affair(work: Callable[..., Worker]) -> None:
    worker, good, bad = work(engine={"num_pages": 40, "epsilon": 0.0}), Heard(), Heard()
    worker.submit(asked(tokens=200), good)
    worker.submit(asked(PROMPT * 500), bad)
    failed = bad.wait(Failed)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, CapacityError)
    good.wait(Done)
    assert isinstance(good.wait(Ended), Ended)


def test_unused_books_make_room(work: Callable[..., Worker]) -> None:
    """Each takes more than half of all pages, so the one before it must go."""
    worker = work(engine={"num_pages": 60, "epsilon": 0.0})
    for seed in range(4):
        heard = Heard()
        worker.submit(asked(f"{seed} " + PROMPT * 55, seed=seed, tokens=2), heard)
        heard.wait(Done, Failed)
        assert heard.text


def test_the_next_request_goes_on_where_a_cancelled_reading_stopped(work: Callable[..., Worker]) -> None:
    worker, first, second = work(engine={"chunk_tokens": 128}), Heard(), Heard()
    job = worker.submit(asked(PROMPT * 200, tokens=1), first)
    while not any(isinstance(event, Reading) and event.num_read >= 512 for event in first.events):
        first.wait(Reading)
    job.cancel()
    first.wait(Done)
    worker.submit(asked(PROMPT * 200, tokens=1), second)
    begun = second.wait(Begun)
    assert isinstance(begun, Begun)
    assert begun.num_cached_tokens >= 384


def test_stopping_ends_every_request(make_engine: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    worker = Worker(make_engine(), tokenizer, most_active=1)
    worker.start()
    heard = [Heard(), Heard()]
    for listener in heard:
        worker.submit(asked(tokens=10_000), listener)
    heard[0].wait(Piece)
    worker.stop()
    for listener in heard:
        listener.wait(Done)
    with pytest.raises(QueueFullError):
        worker.submit(asked(), Heard())
    assert worker.engine.pages.num_held == 0
