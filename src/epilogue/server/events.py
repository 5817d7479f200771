"""From the engine's thread to the event loop: what happens to a request, as it happens."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request

from epilogue.server.job import Job
from epilogue.server.protocol import Done, Event, Failed, Generation, Reading
from epilogue.server.worker import Worker


class Ticket:
    """A request that is under way, and all of its events.

    Args:
        worker: does it.
        generation: what is asked for.

    Raises:
        QueueFullError: the worker has too much to do.
    """

    def __init__(self, worker: Worker, generation: Generation) -> None:
        self._loop = asyncio.get_running_loop()
        # Never full: a reader that is slow must not stall the engine, and a text is no longer than was asked for.
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.job: Job = worker.submit(generation, self._tell)

    def cancel(self) -> None:
        """Stop the work within one step."""
        self.job.cancel()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until all is done; the work stops when this iterator is left.

        Raises:
            Exception: what made the request fail.
        """
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Done):
                    return
        finally:
            self.cancel()

    async def all_events(self, request: Request, on_event: Callable[[Event], None] | None = None) -> list[Event]:
        """All events, collected; the work stops when the client goes away, and the list is what came until then.

        Raises:
            Exception: what made the request fail.
        """
        collected: list[Event] = []

        async def collect() -> None:
            async for event in self.events():
                collected.append(event)
                if on_event is not None:
                    on_event(event)

        work = asyncio.ensure_future(collect())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            self.cancel()
            for task in (work, gone):
                task.cancel()
        return collected

    def _tell(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended, and with it whoever listened
            self.cancel()


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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
