"""Clients of `epilogue serve` that do what front ends do, over and over; for ``benchmarks.serve_load``."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx2

CHATS = "/v1/chat/completions"
MOST_CHARACTERS = 6000
"""Of a story, before another one is begun."""
MIX = (
    ["kobold"] * 5
    + ["kobold stream"] * 6
    + ["completions"] * 3
    + ["completions stream"] * 4
    + ["chat", "chat stream", "chat stream"]
    + ["tokencount"] * 2
    + ["book"] * 2
    + ["leaves"] * 4
    + ["aborts"] * 3
)


@dataclass
class Visit:
    """A request, and how long its client waited."""

    client: int
    kind: str
    start_s: float = field(default_factory=time.monotonic)
    times_s: list[float] = field(default_factory=list)
    """When something came, since the request was last sent."""
    num_refused: int = 0
    error: str | None = None
    end_s: float = 0.0

    @property
    def first_s(self) -> float | None:
        """Until the first piece of text; None if it came whole, or not at all."""
        return self.times_s[0] - self.start_s if self.times_s else None

    @property
    def gaps_s(self) -> list[float]:
        """From piece to piece."""
        return [later - earlier for earlier, later in pairwise(self.times_s)]

    @property
    def longest_wait_s(self) -> float:
        """With nothing coming."""
        moments = [self.start_s, *self.times_s, self.end_s]
        return max(later - earlier for earlier, later in pairwise(moments))


class Writer:
    """One client, that does one kind of thing.

    Args:
        http: to ask by.
        number: which client it is; its seed.
        kind: one of ``MIX``.
        text: what its stories begin with.
        visits: where it notes what it did.
    """

    def __init__(self, http: httpx2.AsyncClient, number: int, kind: str, text: str, visits: list[Visit]) -> None:
        self.http, self.number, self.kind, self.text, self.visits = http, number, kind, text, visits
        self.chance = random.Random(number)
        self.story = ""

    async def work(self, until_s: float) -> None:
        """Ask until then; what is under way is still waited for."""
        do = {
            "kobold": self._kobold,
            "kobold stream": self._kobold_stream,
            "completions": self._completions,
            "completions stream": self._completions_stream,
            "chat": self._chat,
            "chat stream": self._chat_stream,
            "tokencount": self._tokencount,
            "book": self._book,
            "leaves": self._leave,
            "aborts": self._abort,
        }[self.kind]
        while time.monotonic() < until_s:
            self._turn_page()
            visit = Visit(self.number, self.kind)
            try:
                self.story += await do(visit)
            except (httpx2.HTTPError, ValueError, LookupError) as error:
                visit.error = f"{type(error).__name__}: {error}"[:200]
            visit.end_s = time.monotonic()
            self.visits.append(visit)
            await asyncio.sleep(self.chance.uniform(0.0, 0.4))

    def _turn_page(self) -> None:
        if not self.story or (len(self.story) > MOST_CHARACTERS and self.kind != "book"):
            start = self.chance.randrange(max(1, len(self.text) - 4000))
            self.story = self.text[start : start + self.chance.randrange(300, 4000)]

    @property
    def _num_tokens(self) -> int:
        return self.chance.randrange(20, 100)

    @property
    def _kobold_body(self) -> dict[str, Any]:
        return {"prompt": self.story, "max_length": self._num_tokens, "bypass_eos": True, "rep_pen": 1.07}

    @property
    def _openai_body(self) -> dict[str, Any]:
        return {"model": "any", "max_tokens": self._num_tokens, "ignore_eos": True, "temperature": 0.8}

    async def _post(self, visit: Visit, path: str, body: dict[str, Any]) -> dict[str, Any]:
        while True:
            answer = await self.http.post(path, json=body)
            if answer.status_code != 503:
                answer.raise_for_status()
                return dict(answer.json())
            await self._wait(visit, answer)

    async def _events(self, visit: Visit, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
        """The data of a stream."""
        while True:
            async with self.http.stream("POST", path, json=body) as answer:
                if answer.status_code != 503:
                    answer.raise_for_status()
                    async for line in answer.aiter_lines():
                        if line.startswith("data: "):
                            yield line[6:]
                    return
            await self._wait(visit, answer)

    async def _wait(self, visit: Visit, answer: httpx2.Response) -> None:
        visit.num_refused += 1
        await asyncio.sleep(int(answer.headers["Retry-After"]))
        visit.start_s = time.monotonic()

    async def _kobold(self, visit: Visit) -> str:
        answer = await self._post(visit, "/api/v1/generate", self._kobold_body)
        return str(answer["results"][0]["text"])

    async def _kobold_stream(self, visit: Visit, **more: Any) -> str:
        text, reason = "", None
        async for data in self._events(visit, "/api/extra/generate/stream", self._kobold_body | more):
            event = json.loads(data)
            visit.times_s.append(time.monotonic())
            text, reason = text + event["token"], event["finish_reason"]
        if reason is None:
            raise ValueError("the stream broke off")
        return text

    async def _completions(self, visit: Visit) -> str:
        answer = await self._post(visit, "/v1/completions", self._openai_body | {"prompt": self.story})
        return str(answer["choices"][0]["text"])

    async def _completions_stream(self, visit: Visit) -> str:
        body = self._openai_body | {"prompt": self.story, "stream": True}
        return "".join([choice["text"] async for choice in self._choices(visit, "/v1/completions", body)])

    async def _choices(self, visit: Visit, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        data = ""
        async for data in self._events(visit, path, body):
            if data != "[DONE]":
                visit.times_s.append(time.monotonic())
                yield json.loads(data)["choices"][0]
        if data != "[DONE]":
            raise ValueError("the stream broke off")

    @property
    def _chat_body(self) -> dict[str, Any]:
        messages = [{"role": "system", "content": "A tale."}, {"role": "user", "content": self.story}]
        return self._openai_body | {"messages": messages}

    async def _chat(self, visit: Visit) -> str:
        answer = await self._post(visit, "/v1/chat/completions", self._chat_body)
        return str(answer["choices"][0]["message"]["content"])

    async def _chat_stream(self, visit: Visit) -> str:
        body = self._chat_body | {"stream": True}
        pieces = [choice["delta"].get("content", "") async for choice in self._choices(visit, CHATS, body)]
        return "".join(pieces)

    async def _tokencount(self, visit: Visit) -> str:
        answer = await self._post(visit, "/api/extra/tokencount", {"prompt": self.text})
        if answer["value"] != len(answer["ids"]):
            raise ValueError("the count is not that of the ids")
        await asyncio.sleep(1)
        return ""

    async def _book(self, visit: Visit) -> str:
        """A whole book, each client's another; its end grows."""
        if len(self.story) < len(self.text):
            self.story = f"Copy {self.number}.\n{self.text}"
        return await self._kobold_stream(visit)

    async def _leave(self, visit: Visit) -> str:
        """Close the connection, now and then before anything came."""
        if self.chance.random() < 0.3:
            try:
                async with asyncio.timeout(self.chance.uniform(0.01, 0.5)):
                    await self._post(visit, "/api/v1/generate", self._kobold_body)
            except TimeoutError:
                pass
            return ""
        num_wanted = self.chance.randrange(1, 12)
        body = self._kobold_body | {"max_length": 5000}
        async with aclosing(self._events(visit, "/api/extra/generate/stream", body)) as events:
            async for _ in events:
                visit.times_s.append(time.monotonic())
                if len(visit.times_s) >= num_wanted:
                    return ""
        raise ValueError("the stream broke off")

    async def _abort(self, visit: Visit) -> str:
        """Press the button after a while; the stream must end properly."""
        key = f"KCPP{self.number}"
        stream = asyncio.ensure_future(self._kobold_stream(visit, max_length=5000, genkey=key))
        await asyncio.wait({stream}, timeout=self.chance.uniform(0.5, 4.0))
        while not stream.done():  # it may not have been taken up yet
            await self._post(visit, "/api/extra/abort", {"genkey": key})
            await asyncio.wait({stream}, timeout=1.0)
        return await stream
