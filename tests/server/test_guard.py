"""Who may ask, for what, and what is told of it: keys, origins, files, figures and the log."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient
from starlette.types import Message

from epilogue.server import Settings, Worker, create_app
from epilogue.server.kobold import KoboldRequest
from epilogue.server.log import JsonLines
from epilogue.server.openai import ChatRequest, CompletionRequest
from epilogue.text import Tokenizer
from server.conftest import Serve
from server.material import Client

PROMPT = "The wind went round"
SECRET = "Grüße, nobody shall read this"
_opened: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename"):
        _opened.extend(str(argument) for argument in arguments[:2])


sys.addaudithook(_note_opened)


@pytest.mark.parametrize("key", ["secret", "Schlüssel", "ключ", "sp ace"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_key_is_any_text(serve: Serve, key: str, encoding: str) -> None:
    client = serve(api_key=key)

    def status(*, scheme: str = "Bearer", given: str = key) -> int:
        header = f"{scheme} {given}".encode(encoding, errors="replace")
        return client.get("/v1/models", headers={b"Authorization": header}).status_code

    assert (
        status()
        == status(scheme="bearer")
        == (401 if "?" in key.encode(encoding, "replace").decode("latin-1") else 200)
    )
    assert status(given=key + "x") == status(given=key[:-1]) == status(given="") == status(scheme="Basic") == 401
    assert client.post("/api/v1/generate", json={"prompt": PROMPT}).status_code == 401
    assert client.get("/metrics").status_code == 401


def test_a_key_is_compared_in_constant_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    client = serve(api_key="secret")
    monkeypatch.setattr("hmac.compare_digest", compare)
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert {given for given, _ in compared} == {b"secret", b"wrong"}
    assert len(compared) == 4  # in both encodings, whatever came of the first


def preflight(client: TestClient, origin: str) -> str | None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    return client.options("/api/v1/generate", headers=asked).headers.get("access-control-allow-origin")


def test_any_page_may_call_as_kobolds_do_unless_some_are_named(serve: Serve) -> None:
    lite, other = "https://lite.koboldai.net", "https://example.com"
    assert preflight(serve(), lite) == preflight(serve(), other) == "*"
    named = serve(allowed_origins=[lite])
    assert preflight(named, lite) == lite
    assert preflight(named, other) is None
    answers = [named.get("/api/v1/model", headers={"Origin": origin}).headers for origin in (lite, other)]
    assert [answer.get("access-control-allow-origin") for answer in answers] == [lite, None]


def test_a_page_can_ask_before_it_has_the_key(serve: Serve) -> None:
    assert preflight(serve(api_key="secret"), "https://lite.koboldai.net") == "*"


def test_no_path_in_a_request_reaches_the_file_system(serve: Serve, tmp_path: Path) -> None:
    """Every file that is opened while hostile paths are sent in every field is looked at."""
    global _opened
    client, path = serve(saves=tmp_path / "saves"), "../../etc/epilogue-mark"
    fields = ["prompt", "memory", "genkey", "grammar", "stop", "slot", "title", "data", "text", "model", "path", "file"]
    endpoints = [
        (method.upper(), way.replace("{book_id}", "..%2f..%2fepilogue-mark").replace("{model}", path))
        for way, methods in client.app.openapi()["paths"].items()  # type: ignore[attr-defined]
        for method in methods
    ]
    _opened = []
    try:
        for method, way in endpoints:
            for mark in (path, f"/etc/{path}\0"):
                bodies = [{"prompt": mark, "max_length": 1}, *({name: mark, "max_length": 1} for name in fields)]
                for body in bodies if method == "POST" else [{}]:
                    answer = client.request(method, way, json=body, params={"genkey": mark, "path": mark})
                    assert answer.status_code < 500 or answer.status_code == 507
        assert not [name for name in _opened if "epilogue-mark" in name]
    finally:
        _opened = None
    assert {file.name for file in (tmp_path / "saves").glob("*")} <= {f"slot-{slot:02}.json" for slot in range(12)}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CompletionRequest, {"prompt": [1] * 100_000 + ["x"] * 100_000}),
        (CompletionRequest, {"prompt": [None] * 100_000}),
        (CompletionRequest, {"prompt": [["x"] * 1000] * 100}),
        (ChatRequest, {"messages": [{}] * 100_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * 100_000}]}),
        (KoboldRequest, {"stop_sequence": [{}] * 100_000, "sampler_order": [[]] * 100_000}),
        (KoboldRequest, {"custom_token_bans": ["x"] * 100_000, "banned_tokens": [{}] * 100_000}),
        (KoboldRequest, {"logit_bias": {f"word {i}": "x" for i in range(100_000)}}),
        (CompletionRequest, {"logit_bias": {f"word {i}": "x" for i in range(100_000)}}),
    ],
)
def test_of_a_body_that_is_all_wrong_little_is_said(model: Any, body: dict[str, Any]) -> None:
    """An error for every part would be hundreds of bytes for each of the millions that a body may hold."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= 1000


def test_a_body_without_end_is_not_taken_in(make_engine: Any, tokenizer: Tokenizer) -> None:
    """It says no length, and comes for as long as it is read."""
    app = create_app(Worker(make_engine(), tokenizer), Settings(model_name="little", most_body_bytes=10_000))

    class Endless(Client):
        num_taken = 0

        async def _receive(self) -> Message:
            self.num_taken += 1
            return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    client = Endless(app, "/api/v1/generate", {})
    asyncio.run(client.ask())
    assert client.status == 413
    assert client.num_taken == 11


def test_what_is_quoted_of_a_wrong_field_is_short(client: TestClient) -> None:
    answer = client.post("/api/v1/generate", json={"temperature": "hot" * 100_000})
    assert answer.status_code == 422
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    "body",
    [
        {"grammar": 'root ::= "' + "x" * 100_000 + '"'},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 100_000]}}}},
    ],
)
def test_a_grammar_is_no_book(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1} | body).status_code == 422


def figures(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_what_metrics_tell(client: TestClient) -> None:
    body = {"prompt": PROMPT * 40, "max_length": 6, "bypass_eos": True}
    for _ in range(2):
        client.post("/api/v1/generate", json=body)
    told = figures(client)
    assert told["epilogue_written_tokens_total"] == 12
    assert told["epilogue_cached_tokens_total"] >= 128
    assert told["epilogue_read_tokens_total"] < told["epilogue_cached_tokens_total"] * 3
    assert told["epilogue_time_to_first_token_seconds_count"] == 2
    assert told["epilogue_time_per_output_token_seconds_count"] == 2
    assert told["epilogue_waiting_requests"] == told["epilogue_active_requests"] == 0
    assert told["epilogue_tokens_per_second"] == 0
    assert 0 < told["epilogue_held_pages"] < told["epilogue_pages"]
    assert told['epilogue_requests_total{outcome="done"}'] == 2


def test_the_log_tells_figures_and_no_text(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    client = serve()
    client.post("/api/v1/generate", json={"prompt": SECRET, "max_length": 3, "bypass_eos": True, "genkey": SECRET})
    client.post("/v1/completions", json={"prompt": SECRET, "temperature": SECRET})
    client.get(f"/v1/models/{SECRET}")
    client.get("/epilogue/v1/progress", params={"genkey": SECRET})

    def fail(*_: object, **__: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(client.worker, "submit", fail)  # type: ignore[attr-defined]
    assert client.post("/api/v1/generate", json={"prompt": SECRET}).status_code == 500
    records = [record for record in caplog.records if record.name.startswith(("epilogue", "uvicorn", "asyncio"))]
    lines = [json.loads(JsonLines().format(record)) for record in records]
    assert not [line for line in lines if "nobody" in json.dumps(line)]
    [work] = [line for line in lines if line["message"] == "work"]
    assert (work["outcome"], work["written_tokens"], work["level"]) == ("done", 3, "info")
    assert work["prompt_tokens"] > 1
    answers = [line for line in lines if line["message"] == "answer"]
    assert [(line["route"], line["status"]) for line in answers][:4] == [
        ("/api/v1/generate", 200),
        ("/v1/completions", 422),
        ("/v1/models/{model:path}", 404),
        ("/epilogue/v1/progress", 200),
    ]
    [failed] = [line for line in lines if line["level"] == "error"]
    assert failed["error"] == "ValueError"
    assert failed["at"][-1].endswith(" fail")


def test_a_message_of_several_lines_is_cut_at_the_first() -> None:
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "Task exception was never\nfuture: %s", (SECRET,), None)
    assert json.loads(JsonLines().format(record))["message"] == "Task exception was never"
