"""Requests that are no requests: each is refused by its status, none fails the server, none hangs."""

import json
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

PATHS = (
    "/api/v1/generate",
    "/api/extra/generate/stream",
    "/v1/completions",
    "/v1/chat/completions",
    "/api/extra/tokencount",
    "/api/extra/detokenize",
    "/api/extra/abort",
    "/api/extra/generate/check",
    "/api/extra/last_logprobs",
)
WRITERS = PATHS[:4]
VALID: dict[str, dict[str, Any]] = {
    **{path: {"prompt": "The pier", "max_length": 1, "max_tokens": 1} for path in PATHS},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "The pier"}], "max_tokens": 1},
}
NO_JSON = [
    b"{",
    b"[1]",
    b"7",
    b'"text"',
    b"\xff\xfe",
    b"\x00",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"prompt": tru',
    b"prompt=text",
    b'{"prompt": "x"} {}',
]
WRONG = [
    ("max_length", -1),
    ("max_length", 10**30),
    ("max_length", 1.5),
    ("max_length", [1]),
    ("max_length", "1e999"),
    ("temperature", "hot"),
    ("temperature", {}),
    ("temperature", -1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 10**400),
    ("top_k", [0]),
    ("min_p", 2),
    ("n", 0),
    ("n", 17),
    ("n", -(10**20)),
    ("max_context_length", 0),
    ("rep_pen", -3),
    ("rep_pen_range", "all"),
    ("mirostat", 3),
    ("mirostat_tau", -1),
    ("dry_base", 0),
    ("xtc_probability", 7),
    ("sampler_order", "[[[["),
    ("sampler_order", [1] * 17),
    ("sampler_order", [{}]),
    ("stop_sequence", [1]),
    ("stop_sequence", ["x"] * 257),
    ("stop_sequence", {"a": 1}),
    ("stop_sequence", ["x" * 10_001]),
    ("logit_bias", [1]),
    ("logit_bias", {"word": 1}),
    ("logit_bias", {"1": "much"}),
    ("logit_bias", {"1": float("nan")}),
    ("custom_token_bans", "one,two"),
    ("custom_token_bans", ["x"]),
    ("banned_tokens", ["x"] * 769),
    ("grammar", 7),
    ("grammar", "root ::="[:-1]),
    ("grammar", "(" * 1000),
    ("grammar", "\ud800"),
    ("bypass_eos", "perhaps"),
    ("dry_sequence_breakers", [None]),
    ("prompt", {"a": 1}),
    ("prompt", "\ud800"),
    ("prompt", "the \udfff pier"),
]
answers_of_a_body = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_json_of_a_body(client: TestClient, path: str) -> None:
    for body in NO_JSON:
        assert 400 <= client.post(path, content=body).status_code < 500, body[:20]
        assert 400 <= client.post(path, content=body, headers={"Content-Type": "text/plain"}).status_code < 500


@pytest.mark.parametrize("path", WRITERS)
def test_a_field_that_cannot_be(client: TestClient, path: str) -> None:
    for name, value in WRONG:
        if name == "prompt" and "chat" in path:
            continue
        body = json.dumps(VALID[path] | {name: value})
        answer = client.post(path, content=body)
        assert 400 <= answer.status_code < 500, (name, value, answer.text)
        assert "\n" not in answer.json().get("error", {}).get("message", "")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": None},
        {"messages": "x"},
        {"messages": [{"role": "author", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{}]},
        {"messages": [None]},
        VALID["/v1/chat/completions"] | {"response_format": {"type": "poem"}},
        VALID["/v1/chat/completions"] | {"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}},
        VALID["/v1/chat/completions"]
        | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "novel"}}}},
        VALID["/v1/chat/completions"] | {"tools": [{}]},
        VALID["/v1/chat/completions"] | {"top_logprobs": 21, "logprobs": True},
    ],
)
def test_chats_that_are_none(client: TestClient, body: dict[str, Any]) -> None:
    assert 400 <= client.post("/v1/chat/completions", content=json.dumps(body)).status_code < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [[]]}),
        ("/v1/completions", {"prompt": [-1]}),
        ("/v1/completions", {"prompt": [10**30]}),
        ("/v1/completions", {"prompt": [1, "x"]}),
        ("/v1/completions", {"prompt": ["\ud800"]}),
        ("/v1/completions", {"prompt": ["x"] * 1000}),
        ("/v1/completions", {"prompt": "x", "logprobs": 21}),
        ("/v1/completions", {"prompt": "x", "stream_options": 1}),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}),
        ("/api/extra/detokenize", {"ids": [-1]}),
        ("/api/extra/detokenize", {"ids": ["x"]}),
        ("/api/extra/detokenize", {"ids": 7}),
        ("/api/extra/tokencount", {"prompt": "\ud800"}),
        ("/api/extra/abort", {"genkey": "x" * 201}),
        ("/api/extra/generate/check", {"genkey": 7}),
    ],
)
def test_bodies_of_one_path(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, content=json.dumps(body | {"max_tokens": 1}))
    assert answer.status_code in (200, 422, 503), answer.text


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_schema_names(client: TestClient, data: st.DataObject) -> None:
    """Fields of the OpenAPI schema with values of any kind: the server answers, and not by failing."""
    schema = client.app.openapi()  # type: ignore[attr-defined]
    path = data.draw(st.sampled_from(WRITERS))
    name = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
    fields = sorted(set(schema["components"]["schemas"][name]["properties"]) - {"max_length", "stream", "n"})
    body = data.draw(st.dictionaries(st.sampled_from(fields), answers_of_a_body, min_size=1, max_size=4))
    answer = client.post(path, content=json.dumps(VALID[path] | {"max_length": 1} | body))
    assert answer.status_code < 500, (body, answer.text)


def test_the_schema_names_every_operation_once(client: TestClient) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = client.app.openapi()  # type: ignore[attr-defined]
    names = [way["operationId"] for ways in schema["paths"].values() for way in ways.values()]
    assert len(names) == len(set(names))
    codes = schema["paths"]["/api/v1/generate"]["post"]["responses"]
    assert {"200", "400", "401", "413", "422", "503", "507"} <= set(codes)
