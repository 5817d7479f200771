"""Books of a server: read once, kept on disk, found again by another server, listed, opened and removed."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from starlette.testclient import TestClient

from epilogue.engine import Engine, Library
from epilogue.server import Settings, Worker, create_app
from epilogue.server.events import SignsOfLife
from epilogue.server.shelf import Shelf
from epilogue.text import Tokenizer

PAGE = "The wind went round to the north in the night, and nobody could see the end of the pier by morning. "
BOOK = "".join(f"{i}. {PAGE}" for i in range(40))
OTHER = "".join(f"({i}) {PAGE}" for i in range(40))
BOOKS = "/epilogue/v1/books"

Start = Callable[..., Any]


@pytest.fixture
def start(make_engine: Callable[..., Engine], tokenizer: Tokenizer, tmp_path: Path) -> Start:
    """Starts servers one after the other on one folder; 100 tokens are a long text."""

    @contextmanager
    def serving(
        *, keeps: bool = True, limit_bytes: int = 2**30, engine: dict[str, Any] | None = None, **settings: Any
    ) -> Iterator[TestClient]:
        library = Library(tmp_path / "states", limit_bytes=limit_bytes) if keeps else None
        worker = Worker(
            make_engine(**({"num_pages": 4000} | (engine or {}))), tokenizer, library=library, least_tokens=100
        )
        app = create_app(worker, Settings(**({"model_name": "little"} | settings)))
        with TestClient(app, raise_server_exceptions=False, base_url="http://127.0.0.1") as client:
            client.worker = worker  # type: ignore[attr-defined]
            yield client
        assert worker.engine.pages.num_held == 0

    return serving


def ask(client: TestClient, prompt: str, **more: Any) -> tuple[str, int]:
    """What is written, and how many tokens of the prompt had to be read."""
    body = {"prompt": prompt, "max_tokens": 8, "seed": 1, "ignore_eos": True} | more
    answer = client.post("/v1/completions", json=body).json()
    usage = answer["usage"]
    return answer["choices"][0]["text"], usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


def listed(client: TestClient) -> list[dict[str, Any]]:
    return client.get(BOOKS).json()["books"]


def states(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "states").glob("*"))


def test_a_server_goes_on_where_the_one_before_it_stopped(start: Start, tokenizer: Tokenizer) -> None:
    with start(keeps=False) as client:
        wanted, num_read = ask(client, BOOK)
        edited = BOOK[:-300] + "It rained. " + BOOK[-300:]
        wanted_edited, _ = ask(client, edited)
    assert num_read == len(tokenizer.encode(BOOK)) > 1000
    with start() as client:
        assert ask(client, BOOK) == (wanted, num_read)
    with start() as client:
        text, read_again = ask(client, BOOK)
        assert text == wanted
        assert read_again <= 128
        edited_text, read_again = ask(client, edited)
        assert edited_text == wanted_edited
        assert read_again < 300


def test_what_was_read_is_on_disk_before_the_server_stops(start: Start, tmp_path: Path) -> None:
    """So that nothing is lost if it never does, orderly."""
    with start() as client:
        ask(client, BOOK)
        (row,) = listed(client)
        saved = client.post(f"{BOOKS}/{row['id']}/save").json()
        assert (saved["on_disk"], saved["saving"]) == (True, False)
        assert saved["bytes_on_disk"] == sum(path.stat().st_size for path in states(tmp_path))
        ask(client, "Nobody.")
        assert [book["on_disk"] for book in listed(client)] == [False, True], "a short one is not worth it"


def test_a_book_keeps_its_id_and_its_one_state_as_it_grows(start: Start, tmp_path: Path) -> None:
    with start() as client:
        ids = set()
        for length in (2000, 2500, 3000, len(BOOK)):
            ask(client, BOOK[:length])
            ids |= {row["id"] for row in listed(client)}
        assert len(ids) == 1
        ask(client, OTHER)
        assert len(listed(client)) == 2
    assert len(states(tmp_path)) == 2
    with start() as client:
        rows = listed(client)
        assert [(row["in_memory"], row["on_disk"]) for row in rows] == [(False, True)] * 2
        assert [row["tokens"] for row in rows] == sorted((row["tokens"] for row in rows), reverse=True)


def test_books_are_listed_by_their_last_use_also_after_a_restart(start: Start) -> None:
    """A state that is written late, when its server stops or its turn comes, was once the one used last."""
    longer = OTHER + OTHER
    with start() as client:
        ask(client, BOOK)
        ask(client, longer)
        ask(client, BOOK + " And then", max_tokens=30)
        ask(client, longer)
        assert [row["tokens"] > 2000 for row in listed(client)] == [True, False]
    with start() as client:
        assert [row["tokens"] > 2000 for row in listed(client)] == [True, False]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, "Queue[int]"]:
    """The first state is not written before the event; the queue has how many tokens each has that is."""
    is_free, written, keep = threading.Event(), Queue[int](), Library.keep

    def keep_slowly(library: Library, engine: Engine, sequence: Any, **more: Any) -> Any:
        assert is_free.wait(60)
        kept = keep(library, engine, sequence, **more)
        written.put(sequence.table.num_tokens)
        return kept

    monkeypatch.setattr(Library, "keep", keep_slowly)
    return is_free, written


def test_what_was_read_while_a_state_was_written_is_written_next(
    start: Start, tokenizer: Tokenizer, slow_disk: tuple[threading.Event, "Queue[int]"]
) -> None:
    is_free, written = slow_disk
    with start() as client:
        ask(client, BOOK[:3000])
        ask(client, BOOK)
        is_free.set()
        assert written.get(timeout=60) == len(tokenizer.encode(BOOK[:3000]))
        assert written.get(timeout=60) >= len(tokenizer.encode(BOOK))


def test_a_server_that_stops_while_a_state_is_written_writes_what_was_read_since(
    start: Start, tokenizer: Tokenizer, slow_disk: tuple[threading.Event, "Queue[int]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_free, _ = slow_disk
    close = Shelf.close
    monkeypatch.setattr(Shelf, "close", lambda shelf: (is_free.set(), close(shelf)))
    with start() as client:
        ask(client, BOOK[:3000])
        ask(client, BOOK)
    with start() as client:
        (row,) = listed(client)
        assert row["tokens"] >= len(tokenizer.encode(BOOK))


def test_of_books_that_have_no_room_together_the_one_used_last_is_kept(start: Start, tmp_path: Path) -> None:
    """Both are written when the server stops, and the second takes the first one's room before anybody sees to it."""
    with start() as client:
        ask(client, BOOK)
    (state,) = states(tmp_path)
    with start(limit_bytes=state.stat().st_size * 3 // 2) as client:
        ask(client, OTHER + OTHER[:300])
        ask(client, BOOK + " And then", max_tokens=60)
        ask(client, OTHER + OTHER[:300] + " And then", max_tokens=60)
        client.post(f"{BOOKS}/{listed(client)[0]['id']}/save")
        ask(client, BOOK + " And then", max_tokens=60, seed=2)
    assert len(states(tmp_path)) == 1
    with start() as client:
        assert ask(client, BOOK + " And then")[1] < 300


def test_a_state_that_is_written_but_not_yet_seen_to_is_its_books(
    start: Start, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that found such a state on disk, and went on with it, once made a second book of it."""
    monkeypatch.setattr(Shelf, "has_news", False)
    with start() as client:
        ask(client, BOOK)
        (row,), shelf = listed(client), client.worker.shelf
        (saving,) = [book.saving for book in shelf._books.values()]
        assert saving.result().path.exists()

        def open_what_is_found() -> None:
            found = shelf.library.find(shelf.engine, tokenizer.encode(BOOK), least_tokens=1)
            for _ in shelf.open(found):
                pass

        client.worker.ask(open_what_is_found).result()
        assert [book["id"] for book in listed(client)] == [row["id"]]


def test_a_state_that_is_written_while_its_book_is_put_back_replaces_the_one_before(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before is gone then; the shelf once took that for somebody's doing, and kept two of one book."""

    def read_until_it_is_written(shelf: Shelf, text: Any, **more: Any) -> None:
        note_read(shelf, text, **more)
        for book in shelf._books.values():
            if book.saving:
                book.saving.result()

    note_read = Shelf.note_read
    with start() as client:
        ask(client, BOOK[:3000])
        client.post(f"{BOOKS}/{listed(client)[0]['id']}/save")
        with monkeypatch.context() as patch:
            patch.setattr(Shelf, "has_news", False)
            patch.setattr(Shelf, "note_read", read_until_it_is_written)
            ask(client, BOOK)
        client.worker.ask(client.worker.shelf.settle).result()
        (state,) = states(tmp_path)
    assert states(tmp_path) == [state], "what was on disk was written again"


def test_a_state_that_is_replaced_while_it_is_opened_is_of_the_same_book(
    start: Start, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with start() as client:
        ask(client, BOOK[:3000])
        (row,), shelf = listed(client), client.worker.shelf
        client.post(f"{BOOKS}/{row['id']}/save")
        found = shelf.library.find(shelf.engine, tokenizer.encode(BOOK[:3000]))
        ask(client, BOOK)
        client.post(f"{BOOKS}/{row['id']}/save")
        assert not found.kept.path.exists()
        client.worker.ask(lambda: list(shelf.open(found))).result()
        assert [book["id"] for book in listed(client)] == [row["id"]]
    assert len(states(tmp_path)) == 1


def test_a_book_is_read_ahead_of_time_and_its_progress_told(start: Start, tokenizer: Tokenizer) -> None:
    with start() as client:
        raw = client.post(BOOKS, json={"text": BOOK, "title": "The Pier", "stream": True}).text
        events = [re.fullmatch(r"event: (\w+)\ndata: (.*)", event) for event in raw.split("\n\n")[:-1]]
        told = [(match[1], json.loads(match[2])) for match in events if match]
        assert len(told) == len(events)
        total = len(tokenizer.encode(BOOK))
        known = [data["tokens_known"] for name, data in told if name == "progress"]
        assert known == sorted(known)
        assert len(set(known)) > 10
        assert told[-2][1]["seconds_left"] is not None or known[-1] == total
        name, book = told[-1]
        assert (name, book["title"], book["tokens"], book["tokens_read"]) == ("book", "The Pier", total, total)
        assert "wind" not in raw
        again = client.post(BOOKS, json={"text": BOOK})
        assert again.status_code == 201
        assert again.json()["id"] == book["id"]
        assert again.json()["tokens_read"] <= 128
        assert ask(client, BOOK)[1] <= 128
        assert client.get("/epilogue/v1/progress").json() == {"requests": []}


def test_a_book_is_opened_from_disk_and_removed(start: Start, tmp_path: Path) -> None:
    with start() as client:
        client.post(BOOKS, json={"text": BOOK, "title": "The Pier"})
    with start() as client:
        (row,) = listed(client)
        assert (row["title"], row["in_memory"], row["bytes_in_memory"]) == ("The Pier", False, 0)
        opened = client.post(f"{BOOKS}/{row['id']}/open").json()
        assert (opened["in_memory"], opened["tokens"]) == (True, row["tokens"])
        assert opened["bytes_in_memory"] > 0
        assert client.post(f"{BOOKS}/{row['id']}/open").json()["in_memory"], "no harm in asking twice"
        assert ask(client, BOOK)[1] <= 128
        assert len(listed(client)) == 1
        assert client.delete(f"{BOOKS}/{row['id']}").status_code == 204
        assert listed(client) == []
        assert states(tmp_path) == []
        assert ask(client, BOOK)[1] > 1000


@pytest.mark.parametrize("book_id", ["0" * 16, "..%2F..%2Fetc", "%2e%2e", "ABCDEF0123456789", "*", "0" * 17])
def test_an_id_is_one_of_the_servers_own(start: Start, book_id: str) -> None:
    with start() as client:
        ask(client, BOOK)
        for method, path in (("POST", "/save"), ("POST", "/open"), ("DELETE", "")):
            answer = client.request(method, f"{BOOKS}/{book_id}{path}")
            assert answer.status_code in (404, 405, 422)
        assert len(listed(client)) == 1


def test_without_a_folder_books_stay_in_memory(start: Start, tmp_path: Path) -> None:
    with start(keeps=False) as client:
        ask(client, BOOK)
        (row,) = listed(client)
        assert (row["in_memory"], row["on_disk"]) == (True, False)
        answer = client.post(f"{BOOKS}/{row['id']}/save")
        assert answer.status_code == 422
        assert "start it without --no-keep" in answer.json()["error"]["message"]
    assert states(tmp_path) == []


def test_a_damaged_state_is_read_again(start: Start, tmp_path: Path) -> None:
    with start() as client:
        wanted, num_read = ask(client, BOOK)
    (path,) = states(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[-200] ^= 1
    path.write_bytes(raw)
    with start() as client:
        assert client.post(f"{BOOKS}/{listed(client)[0]['id']}/open").status_code == 409
        assert ask(client, BOOK) == (wanted, num_read)
    assert [kept.header is not None for kept in Library(tmp_path / "states").all()] == [True]


def test_unused_books_make_room_for_one_from_disk(start: Start) -> None:
    options = {"num_pages": 100, "epsilon": 0.0}
    with start(engine=options) as client:
        wanted, _ = ask(client, BOOK)
    with start(engine=options) as client:
        ask(client, OTHER)
        assert ask(client, BOOK) == (wanted, pytest.approx(64, abs=64))
        assert len([row for row in listed(client) if row["in_memory"]]) == 1


class Gate:
    """Holds up the writing of states until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gate, self.reached, keep = threading.Event(), threading.Event(), Library.keep

        def held_up(*args: Any, **options: Any) -> Any:
            self.reached.set()
            assert self._gate.wait(60)
            return keep(*args, **options)

        monkeypatch.setattr(Library, "keep", held_up)

    def open(self) -> None:
        self._gate.set()


def test_nobody_waits_for_the_disk(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gate = Gate(monkeypatch)
    with start() as client:
        ask(client, BOOK)
        assert gate.reached.wait(60)
        wanted, num_read = ask(client, OTHER)
        assert num_read > 1000
        assert ask(client, BOOK + " And then?")[1] <= 128 + 20
        assert [row["saving"] for row in listed(client)] == [True, True]
        gate.open()
    assert len(states(tmp_path)) == 2
    with start() as client:
        assert ask(client, OTHER) == (wanted, pytest.approx(64, abs=64))


def test_a_book_that_needs_the_pages_of_a_state_waits_until_that_is_written(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with start(engine={"num_pages": 100, "epsilon": 0.0}) as client, ThreadPoolExecutor(1) as beside:
        ask(client, BOOK)
        assert gate.reached.wait(60)
        other = beside.submit(ask, client, OTHER)
        while not client.worker._admission._without_room:
            assert not other.done()
        gate.open()
        assert other.result(60)[1] > 1000


def test_what_cannot_be_kept_is_no_reason_to_stop(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "states").write_text("not a folder")
    with start() as client:
        client.post(BOOKS, json={"text": BOOK})
        (row,) = listed(client)
        assert (row["in_memory"], row["on_disk"]) == (True, False)
        answer = client.post(f"{BOOKS}/{row['id']}/save")
        assert answer.status_code == 507
        assert "cannot be made" in answer.json()["error"]["message"]
    assert "what was read is not kept" in caplog.text
    assert "wind" not in caplog.text


@pytest.mark.parametrize(
    ("origin", "settings", "status"),
    [
        (None, {}, 200),
        ("http://localhost:8080", {}, 200),
        ("http://127.0.0.1:5001", {}, 200),
        ("https://elsewhere.example", {}, 403),
        ("null", {}, 403),
        ("https://elsewhere.example", {"allowed_origins": ["https://elsewhere.example"]}, 200),
        ("https://elsewhere.example", {"api_key": "secret"}, 200),
    ],
)
def test_pages_of_other_sites_hear_nothing_of_books(
    start: Start, origin: str | None, settings: dict[str, Any], status: int
) -> None:
    headers = {"Origin": origin} if origin else {}
    if "api_key" in settings:
        headers["Authorization"] = "Bearer secret"
    with start(**settings) as client:
        assert client.get(BOOKS, headers=headers).status_code == status


def test_a_long_reading_shows_signs_of_life(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SignsOfLife, "every_s", 0.0)
    with start() as client:
        body = {"prompt": BOOK, "max_length": 4, "sampler_seed": 1, "bypass_eos": True}
        raw = client.post("/api/extra/generate/stream", json=body).text
        comments = [block for block in raw.split("\n\n") if block.startswith(":")]
        assert len(comments) > 10
        assert all(re.fullmatch(r": read \d+ of \d+ tokens", comment) for comment in comments)
        rest = [block for block in raw.split("\n\n")[:-1] if not block.startswith(":")]
        assert all(block.startswith("event: message\ndata: ") for block in rest)
        openai = pytest.importorskip("openai").OpenAI(
            base_url="http://127.0.0.1/v1", api_key="none", http_client=client, max_retries=0
        )
        chunks = openai.completions.create(model="little", prompt=OTHER, max_tokens=4, seed=1, stream=True)
        assert (
            "".join(chunk.choices[0].text for chunk in chunks) == ask(client, OTHER, max_tokens=4, ignore_eos=False)[0]
        )


def test_clients_are_told_a_context_that_the_model_can_be_expected_to_read(start: Start) -> None:
    def told(client: TestClient) -> set[int]:
        kobold = [client.get(f"/api/{path}").json()["value"] for path in ("v1/config/max_context_length",)]
        kobold.append(client.get("/api/extra/true_max_context_length").json()["value"])
        return {*kobold, client.get("/v1/models").json()["data"][0]["max_model_len"]}

    with start() as client:
        assert told(client) == {4 * 64}
        assert ask(client, BOOK)[1] > 1000, "nothing is left out of what is longer"
    with start(context_tokens=100_000, engine={"num_pages": 60, "epsilon": 0.0}) as client:
        assert told(client) == {client.worker.most_tokens}
        assert client.worker.most_tokens < 100_000


def test_what_several_texts_begin_with_is_scored_once(start: Start, make_engine: Any, tokenizer: Tokenizer) -> None:
    def score(client: TestClient, prompt: str, top: int) -> dict[str, Any]:
        body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": top}
        answer = client.post("/v1/completions", json=body).json()
        usage = answer["usage"]
        read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["logprobs"] | {"read": read}

    with start() as client:
        first = score(client, BOOK, 2)
        for prompt, top, most_read in ((BOOK + "It rained.", 1, 140), (BOOK[:1500], 2, 140), (BOOK, 3, 5000)):
            told = score(client, prompt, top)
            assert told["read"] <= most_read
            wanted = make_engine(num_pages=4000).score(tokenizer.encode(prompt)).tolist()
            assert told["token_logprobs"] == [None, *(pytest.approx(x, abs=1e-3) for x in wanted)]
            assert all(len(likeliest) == top for likeliest in told["top_logprobs"][1:])
        assert first["read"] > 1000
        assert not any(row["on_disk"] or row["saving"] for row in listed(client)), "what is scored is not kept on disk"
