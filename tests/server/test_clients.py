"""Clients as they are: they go away, they do not read, they ask for much at once. Others notice nothing."""

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import ref

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from epilogue.engine import Engine
from epilogue.errors import RequestError
from epilogue.server import Settings, Worker, create_app
from epilogue.server.events import Ticket
from epilogue.server.job import Job, Listener
from epilogue.server.protocol import Ended, Event, Failed, Generation, Piece, Reading
from epilogue.text import Tokenizer
from server.material import PROMPT, WAIT_S, Client, Heard, asked

LONG = {"prompt": PROMPT, "max_length": 100_000, "max_tokens": 100_000, "ignore_eos": True, "bypass_eos": True}
WAYS = {
    "/api/v1/generate": LONG,
    "/api/extra/generate/stream": LONG,
    "/v1/completions": LONG,
    "/v1/completions streamed": LONG | {"stream": True},
    "/v1/completions of three": LONG | {"prompt": [PROMPT] * 3},
    "/v1/chat/completions streamed": LONG | {"messages": [{"role": "user", "content": PROMPT}], "stream": True},
    "/epilogue/v1/books": {"text": PROMPT * 2000},
    "/epilogue/v1/books streamed": {"text": PROMPT * 2000, "stream": True},
}


class Ends:
    """How every request of a worker has ended, and a way to wait for that."""

    def __init__(self, worker: Worker) -> None:
        self.outcomes: list[str] = []
        self._changed = threading.Condition()
        worker.on_end = self

    def __call__(self, job: Job, *, outcome: str) -> None:
        with self._changed:
            self.outcomes.append(outcome)
            self._changed.notify_all()

    async def wait(self, count: int) -> None:
        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.outcomes) >= count, WAIT_S), self.outcomes

        await asyncio.to_thread(wait)


@asynccontextmanager
async def serving(make_engine: Callable[..., Engine], tokenizer: Tokenizer, **options: Any) -> AsyncIterator[FastAPI]:
    engine = {"num_pages": 20_000} | options.pop("engine", {})
    worker = Worker(make_engine(**engine), tokenizer, **options)
    app = create_app(worker, Settings(model_name="little"))
    app.state.submitted, app.state.begun, app.state.jobs = asyncio.Event(), asyncio.Event(), []
    loop, submit = asyncio.get_running_loop(), worker.submit

    def noting(generation: Generation, listener: Listener) -> Job:
        def listen(event: Event) -> None:
            if isinstance(event, Reading | Piece):
                loop.call_soon_threadsafe(app.state.begun.set)
            listener(event)

        app.state.submitted.set()
        job = submit(generation, listen)
        app.state.jobs.append(ref(job))
        return job

    worker.submit = noting  # type: ignore[method-assign]
    worker.start()
    try:
        yield app
    finally:
        await asyncio.to_thread(worker.stop)
        assert worker.engine.pages.num_held == 0


async def until(heard: Heard, kind: type) -> None:
    await asyncio.to_thread(heard.wait, kind)


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_goes_away_ends_its_work(make_engine: Any, tokenizer: Tokenizer, way: str) -> None:
    async def scene() -> None:
        async with serving(make_engine, tokenizer) as app:
            worker: Worker = app.state.desk.worker
            ends, client = Ends(worker), Client(app, way.split()[0], WAYS[way])
            asking = asyncio.ensure_future(client.ask())
            await app.state.begun.wait()
            client.leave()
            await asking
            num_jobs = 3 if "three" in way else 1
            await ends.wait(num_jobs)
            assert ends.outcomes == ["cancelled"] * num_jobs

    asyncio.run(scene())


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_goes_away_gives_its_place_in_the_queue_back(
    make_engine: Any, tokenizer: Tokenizer, way: str
) -> None:
    async def scene() -> None:
        async with serving(make_engine, tokenizer, most_active=1, most_turn_s=1e9) as app:
            worker: Worker = app.state.desk.worker
            first = worker.submit(asked(tokens=100_000), (busy := Heard()))
            await until(busy, Piece)
            ends, client = Ends(worker), Client(app, way.split()[0], WAYS[way])
            app.state.submitted.clear()
            asking = asyncio.ensure_future(client.ask())
            await app.state.submitted.wait()
            client.leave()
            await asking
            await ends.wait(3 if "three" in way else 1)
            await asyncio.wrap_future(worker.ask(lambda: None))
            assert (worker.num_waiting, worker.num_active) == (0, 1)
            first.cancel()

    asyncio.run(scene())


def test_what_an_abandoned_text_held_is_there_for_others(make_engine: Any, tokenizer: Tokenizer) -> None:
    """Each of the two takes more than half of the memory."""

    async def scene() -> None:
        async with serving(make_engine, tokenizer, engine={"num_pages": 60, "epsilon": 0.0}) as app:
            ends = Ends(app.state.desk.worker)
            client = Client(app, "/api/extra/generate/stream", LONG | {"prompt": PROMPT * 80, "max_length": 700})
            asking = asyncio.ensure_future(client.ask())
            await client.came.wait()
            client.leave()
            await asking
            await ends.wait(1)
            body = {"prompt": "Nobody. " + PROMPT * 80, "max_length": 4, "bypass_eos": True}
            other = await Client(app, "/api/v1/generate", body).ask()
            assert other.status == 200
            assert "failed" not in ends.outcomes

    asyncio.run(scene())


def test_a_client_that_does_not_read_holds_nobody_up_and_is_given_up(
    make_engine: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is sent to it ever goes out; it keeps its connection."""
    monkeypatch.setattr(Ticket, "most_unread", 50)

    async def scene() -> None:
        async with serving(make_engine, tokenizer) as app:
            ends = Ends(app.state.desk.worker)
            for path, body in (("/api/extra/generate/stream", LONG), ("/v1/completions", LONG | {"stream": True})):
                client = Client(app, path, body, reads=False)
                asking = asyncio.ensure_future(client.ask())
                other = await Client(app, "/api/v1/generate", LONG | {"max_length": 20}).ask()
                assert json.loads(other.text)["results"][0]["completion_tokens"] == 20
                ends.outcomes = [outcome for outcome in ends.outcomes if outcome != "done"]
                await ends.wait(1)
                assert ends.outcomes == ["cancelled"]
                assert not asking.done()
                client.leave()
                await asking
                assert not client.messages
                ends.outcomes.clear()

    asyncio.run(scene())


def test_of_a_stream_that_is_not_read_only_so_much_is_kept(
    make_engine: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ticket, "most_unread", 50)

    async def scene() -> list[object]:
        async with serving(make_engine, tokenizer) as app:
            ends = Ends(app.state.desk.worker)
            ticket, read = Ticket(app.state.desk.worker, [asked(tokens=100_000)]), list[object]()
            await ends.wait(1)
            try:
                async for _, event in ticket.events():
                    read.append(event)
            except RequestError as error:
                read.append(str(error))
            return read

    *read, told = asyncio.run(scene())
    assert len(read) == 50
    assert told == "50 pieces were not read; read them as they come"


def test_a_reader_that_was_given_up_sees_that_its_stream_is_not_whole(
    make_engine: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads again too late: what was kept comes, and then no proper end."""
    monkeypatch.setattr(Ticket, "most_unread", 50)

    async def scene() -> Client:
        async with serving(make_engine, tokenizer) as app:
            ends, client = Ends(app.state.desk.worker), Client(app, "/api/extra/generate/stream", LONG, reads=False)
            asking = asyncio.ensure_future(client.ask())
            await ends.wait(1)
            client.read()
            return await asking

    client = asyncio.run(scene())
    assert '"finish_reason": null' in client.text
    assert '"finish_reason": "' not in client.text
    assert client.messages[-1].get("more_body")


def test_a_request_that_is_aborted_in_the_queue_ends_properly(make_engine: Any, tokenizer: Tokenizer) -> None:
    async def scene() -> None:
        async with serving(make_engine, tokenizer, most_active=1, most_turn_s=1e9) as app:
            worker: Worker = app.state.desk.worker
            first = worker.submit(asked(tokens=100_000), (busy := Heard()))
            await until(busy, Piece)
            client = Client(app, "/api/extra/generate/stream", LONG | {"genkey": "KCPP1"})
            app.state.submitted.clear()
            asking = asyncio.ensure_future(client.ask())
            await app.state.submitted.wait()
            await Client(app, "/api/extra/abort", {"genkey": "KCPP1"}).ask()
            await asking
            assert client.text == 'event: message\ndata: {"token": "", "finish_reason": "stop"}\n\n'
            first.cancel()

    asyncio.run(scene())


def test_a_full_queue_tells_when_to_come_again(make_engine: Any, tokenizer: Tokenizer) -> None:
    async def scene() -> None:
        async with serving(make_engine, tokenizer, most_active=1, most_waiting=1, most_turn_s=1e9) as app:
            worker: Worker = app.state.desk.worker
            first = worker.submit(asked(tokens=100_000), (busy := Heard()))
            await until(busy, Piece)
            second = worker.submit(asked(), Heard())
            for way, body in WAYS.items():
                refused = await Client(app, way.split()[0], body).ask()
                assert refused.status == 503
                assert int(dict(refused.messages[0]["headers"])[b"retry-after"]) > 0
            assert worker.num_waiting == 1
            first.cancel()
            second.cancel()

    asyncio.run(scene())


def test_nothing_of_a_request_is_left_when_it_is_over(make_engine: Any, tokenizer: Tokenizer) -> None:
    """What clients may still ask for by its key is its text, and that keeps no book."""

    async def scene() -> list[Any]:
        async with serving(make_engine, tokenizer) as app:
            for number, (way, body) in enumerate(WAYS.items()):
                short = {"max_length": 3, "max_tokens": 3, "genkey": f"KCPP{number}", "text": PROMPT}
                await Client(app, way.split()[0], body | short).ask()
            client = Client(app, "/api/extra/generate/stream", LONG)
            asking = asyncio.ensure_future(client.ask())
            await client.came.wait()
            client.leave()
            await asking
        return list(app.state.jobs)

    jobs = asyncio.run(scene())
    gc.collect()
    assert len(jobs) == len(WAYS) + 2 + 1
    assert [job() for job in jobs if job() is not None] == []


def test_several_prompts_are_streamed_side_by_side(client: TestClient) -> None:
    prompts = [PROMPT, "nobody could", "by morning"]
    body = {"prompt": prompts, "max_tokens": 8, "seed": 2, "n": 2, "ignore_eos": True}
    whole = client.post("/v1/completions", json=body).json()
    texts, ended = [""] * 6, [0] * 6
    lines = client.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    for line in lines[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
            ended[choice["index"]] += choice["finish_reason"] == "length"
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert ended == [1] * 6


def test_a_request_of_more_prompts_than_may_wait_is_no_request(client: TestClient) -> None:
    """Trying again, as 503 asks for, would never help."""
    answer = client.post("/v1/completions", json={"prompt": ["x"] * 1000, "max_tokens": 1})
    assert answer.status_code == 422
    assert "prompt holds 1000 texts, and at most 64 are taken" in answer.json()["error"]["message"]
    assert client.post("/v1/completions", json={"prompt": ["x"] * 64, "max_tokens": 1}).status_code == 200


def test_a_listener_whose_loop_is_gone_stops_the_work(make_engine: Any, tokenizer: Tokenizer) -> None:
    worker = Worker(make_engine(num_pages=20_000), tokenizer)
    ends, heard = Ends(worker), Heard()
    worker.start()

    async def ask() -> Ticket:
        return Ticket(worker, [asked(tokens=100_000)])

    ticket = asyncio.run(ask())
    asyncio.run(ends.wait(1))
    assert ends.outcomes == ["cancelled"]
    assert ticket.jobs[0].is_cancelled
    worker.submit(asked(), heard)
    heard.wait(Ended, Failed)
    worker.stop()
