"""From the engine's thread to the event loop: what happens to a request, as it happens."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from epilogue.errors import EpilogueError, RequestError
from epilogue.server.job import Job
from epilogue.server.protocol import Done, Event, Failed, Generation, Reading
from epilogue.server.worker import Worker

_log = logging.getLogger("epilogue.server")
T = TypeVar("T")
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "a stream of events", "content": {"text/event-stream": {}}}
}
"""What the OpenAPI schema says of an endpoint that streams."""


class Ticket:
    """What one client has asked for, of one prompt or several, and all that happens to it.

    Args:
        worker: does it.
        generations: what is asked for.

    Raises:
        QueueFullError: the worker has too much to do; nothing of it is done.
    """

    most_unread = 4096
    """Events that may lie here. The engine waits for no reader, so one that reads no more is given up behind these."""

    def __init__(self, worker: Worker, generations: Sequence[Generation]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._first: tuple[int, Event] | None = None
        self._is_given_up = False
        self.jobs: list[Job] = []
        try:
            for index, generation in enumerate(generations):
                self.jobs.append(worker.submit(generation, partial(self._tell, index)))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Stop the work within one step."""
        for job in self.jobs:
            job.cancel()

    async def begin(self, request: Request) -> None:
        """Wait until something has happened, so that what cannot be served is still answered by its status.

        Raises:
            ClientDisconnect: the client went away; the work is stopped.
            Exception: what made the request fail.
        """
        try:
            self._first = await _unless_gone(request, self._next())
        except BaseException:
            self.cancel()
            raise

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What happens to which of the prompts, until all is done; the work stops when this iterator is left.

        Raises:
            Exception: what made the request fail.
        """
        num_open = len(self.jobs)
        try:
            while num_open:
                first, self._first = self._first, None
                index, event = first or await self._next()
                num_open -= isinstance(event, Done)
                yield index, event
        finally:
            self.cancel()

    async def all_events(
        self, request: Request, on_event: Callable[[Event], None] = lambda _: None
    ) -> list[tuple[int, Event]]:
        """All events, collected.

        Raises:
            ClientDisconnect: the client went away; the work is stopped.
            Exception: what made the request fail.
        """
        collected: list[tuple[int, Event]] = []

        async def collect() -> None:
            async for index, event in self.events():
                collected.append((index, event))
                on_event(event)

        try:
            await _unless_gone(request, collect())
        finally:
            self.cancel()
        return collected

    async def _next(self) -> tuple[int, Event]:
        index, event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    def _tell(self, index: int, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._put, index, event)
        except RuntimeError:  # the loop has ended, and with it whoever listened
            self.cancel()

    def _put(self, index: int, event: Event) -> None:
        if self._is_given_up:
            return
        if self._events.qsize() >= self.most_unread:
            self._is_given_up = True
            self.cancel()
            event = Failed(RequestError(f"{self.most_unread} pieces were not read; read them as they come"))
        self._events.put_nowait((index, event))


class EventStream(StreamingResponse):
    """Server-sent events of a request, whose work stops when the client goes away.

    Args:
        ticket: the request.
        lines: what is sent, as ``ticket`` tells of it. What fails it ends the connection in the middle: a stream has
            no status any more, and must not look complete.
    """

    def __init__(self, ticket: Ticket, lines: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        try:
            await super().__call__(scope, receive, send)
        except EpilogueError as error:
            _log.warning("a stream was broken off (%s)", type(error).__name__)
        finally:
            self._ticket.cancel()


class SignsOfLife:
    """Lines for a stream of events that has nothing to say for long: clients give up on a silent one after minutes.

    They are comments, which the readers of Kobold Lite, SillyTavern and OpenAI's clients skip between events.
    """

    every_s = 5.0

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def line(self, event: Event) -> str | None:
        """What to send now, if anything."""
        if not isinstance(event, Reading) or time.monotonic() - self._told_s < self.every_s:
            return None
        self._told_s = time.monotonic()
        return f": read {event.num_read} of {event.num_total} tokens\n\n"


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What comes of some work, which is cancelled if the client goes away meanwhile."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
