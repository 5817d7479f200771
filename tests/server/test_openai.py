"""The OpenAI API, asked by OpenAI's own client where it is installed."""

import json
import math
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from epilogue.engine import Engine
from epilogue.text import Tokenizer

PROMPT = "The wind went round"


@pytest.fixture
def openai(client: TestClient) -> Any:
    library = pytest.importorskip("openai")
    return library.OpenAI(base_url=str(client.base_url) + "/v1", api_key="none", http_client=client, max_retries=0)


def test_models(openai: Any) -> None:
    assert [model.id for model in openai.models.list()] == ["little"]
    assert openai.models.retrieve("little").id == "little"


def test_completions_whole_and_streamed(openai: Any) -> None:
    settings: dict[str, Any] = {"model": "little", "prompt": PROMPT, "max_tokens": 12, "seed": 5, "n": 2}
    whole = openai.completions.create(**settings)
    texts = ["", ""]
    usage = None
    for chunk in openai.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert whole.usage.completion_tokens == usage.completion_tokens == 24
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]


def test_chat_is_the_story_so_far(openai: Any) -> None:
    messages = [{"role": "system", "content": "A sad tale."}, {"role": "user", "content": PROMPT}]
    chat = openai.chat.completions.create(model="little", messages=messages, max_tokens=9, seed=1)
    same = openai.completions.create(model="little", prompt=f"A sad tale.\n\n{PROMPT}", max_tokens=9, seed=1)
    assert chat.choices[0].message.content == same.choices[0].text
    pieces = openai.chat.completions.create(model="little", messages=messages, max_tokens=9, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == same.choices[0].text


def test_json_of_a_schema(openai: Any) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"end": {"enum": ["sad", "good"]}}, "required": ["end"]}
    schema["additionalProperties"] = False
    asked = {"type": "json_schema", "json_schema": {"name": "ending", "schema": schema}}
    messages = [{"role": "user", "content": PROMPT}]
    chat = openai.chat.completions.create(
        model="little", messages=messages, max_tokens=40, seed=1, response_format=asked
    )
    assert json.loads(chat.choices[0].message.content)["end"] in ("sad", "good")


def test_a_second_request_reads_only_what_is_new(openai: Any) -> None:
    prompt = PROMPT * 40
    openai.completions.create(model="little", prompt=prompt, max_tokens=1)
    again = openai.completions.create(model="little", prompt=prompt + " and then", max_tokens=1)
    assert again.usage.prompt_tokens - again.usage.prompt_tokens_details.cached_tokens < 160


def test_echo_scores_the_prompt_as_the_engine_does(openai: Any, make_engine: Any, tokenizer: Tokenizer) -> None:
    prompt = PROMPT * 6
    choice = openai.completions.create(model="little", prompt=prompt, max_tokens=1, echo=True, logprobs=1).choices[0]
    ids = tokenizer.encode(prompt)
    engine: Engine = make_engine()
    told = choice.logprobs.token_logprobs
    assert told[0] is None
    torch.testing.assert_close(torch.tensor(told[1:-1]), engine.score(ids), atol=1e-4, rtol=1e-4)
    assert choice.text.startswith(prompt)
    assert choice.logprobs.tokens[: len(ids)] == [tokenizer.token_text(i) for i in ids]
    assert all(max(top.values()) >= x - 1e-6 for x, top in zip(told[1:], choice.logprobs.top_logprobs[1:], strict=True))
    assert all(math.isfinite(x) and x <= 0 for x in told[1:])


def test_several_prompts_of_ids(openai: Any, tokenizer: Tokenizer) -> None:
    prompts = [tokenizer.encode(PROMPT), tokenizer.encode("nobody could")]
    both = openai.completions.create(model="little", prompt=prompts, max_tokens=4, seed=2)
    alone = [openai.completions.create(model="little", prompt=p, max_tokens=4, seed=2) for p in prompts]
    assert [choice.index for choice in both.choices] == [0, 1]
    assert [choice.text for choice in both.choices] == [one.choices[0].text for one in alone]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "x", "suffix": "y"}, "suffix is not supported"),
        ({"prompt": "x", "temperature": -1}, "temperature must be"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "n": 0}, "n: "),
        ({"prompt": [10**9]}, "outside the vocabulary"),
        ({"prompt": "x", "logit_bias": {"1": 1000}}, "logit_bias"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ],
)
def test_refusals_are_in_openais_shape(client: TestClient, body: dict, words: str) -> None:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]


def test_a_text_that_does_not_fit_is_refused_before_it_is_read(serve: Any) -> None:
    client = serve(engine={"num_pages": 6, "epsilon": 0.0})
    answer = client.post("/v1/completions", json={"prompt": PROMPT * 100})
    assert answer.status_code == 507
    assert "tokens would fit" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'{"prompt": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/api/v1/generate", "/api/extra/tokencount"):
        assert 400 <= client.post(path, content=body).status_code < 500


def test_a_body_that_is_too_long_is_refused(serve: Any) -> None:
    client = serve(most_body_bytes=1000)
    assert client.post("/v1/completions", json={"prompt": "x" * 2000}).status_code == 413


def test_nobody_gets_in_without_the_key(serve: Any) -> None:
    client = serve(api_key="secret")
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/healthz").status_code == 200
