"""What a worker and an application are tested with: listeners that can be waited for, and clients that misbehave."""

import asyncio
import json
import threading
from typing import Any

from starlette.types import ASGIApp, Message

from epilogue.engine import SamplingParams
from epilogue.server.protocol import Event, Generation, Piece

PROMPT = "The wind went round to the north"
WAIT_S = 120


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


def asked(prompt: str = PROMPT, *, tokens: int = 10, seed: int = 1, **more: Any) -> Generation:
    return Generation(prompt=prompt, params=SamplingParams(max_new_tokens=tokens, seed=seed, ignore_eos=True), **more)


class Client:
    """A client of the bare application, for whom the test decides when it reads and when it goes away."""

    def __init__(self, app: ASGIApp, path: str, body: dict[str, Any], *, reads: bool = True) -> None:
        self._app, self._path = app, path
        self._reading, self._gone = asyncio.Event(), asyncio.Event()
        if reads:
            self._reading.set()
        self._to_send = [json.dumps(body).encode()]
        self.messages: list[Message] = []
        self.came = asyncio.Event()
        """Something has come."""

    async def ask(self) -> "Client":
        """Ask, and return when the application has no more to say."""
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        scope |= {"method": "POST", "path": self._path, "raw_path": self._path.encode(), "query_string": b""}
        scope |= {"headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http"}
        await self._app(scope, self._receive, self._send)
        return self

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    def read(self) -> None:
        """Take what was sent."""
        self._reading.set()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.messages).decode()

    async def _receive(self) -> Message:
        if self._to_send:
            return {"type": "http.request", "body": self._to_send.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._reading.wait()
        self.messages.append(message)
        self.came.set()
