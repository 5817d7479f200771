"""The Kobold API as Kobold Lite and SillyTavern speak it."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from epilogue.engine import Engine
from epilogue.server.kobold import KoboldRequest, generation_of
from epilogue.text import Tokenizer

PROMPT = "The wind went round"


def params_of(tokenizer: Tokenizer, **body: Any):
    return generation_of(KoboldRequest.model_validate(body), tokenizer).params


def test_numbers_may_be_strings_and_nulls_are_defaults(tokenizer: Tokenizer) -> None:
    params = params_of(tokenizer, max_length="12", temperature="0.5", top_k=None, rep_pen="1.1", sampler_seed="7")
    assert (params.max_new_tokens, params.temperature, params.top_k) == (12, 0.5, 100)
    assert (params.repetition_penalty, params.seed) == (1.1, 7)


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_tokens": 9}, "max_new_tokens", 9),
        ({"n_predict": 9, "max_length": 5}, "max_new_tokens", 5),
        ({"repeat_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"typical_p": 0.5}, "typical", 0.5),
        ({"tfs_z": 0.5}, "tail_free", 0.5),
        ({"tfs": 0}, "tail_free", 1.0),
        ({"top_p": 0}, "top_p", 1.0),
        ({"mirostat_mode": 2}, "mirostat", 2),
        ({"seed": -1}, "seed", None),
        ({"sampler_seed": 2**63}, "seed", 0),
        ({"ban_eos_token": True}, "ignore_eos", True),
        ({"custom_token_bans": "1,2"}, "logit_bias", {1: float("-inf"), 2: float("-inf")}),
        ({"logit_bias": {"3": 5}}, "logit_bias", {3: 5.0}),
        ({"unknown": {"deep": [1]}}, "top_k", 100),
    ],
)
def test_aliases_and_what_switches_off(tokenizer: Tokenizer, body: dict, field: str, value: object) -> None:
    assert getattr(params_of(tokenizer, **body), field) == value


def test_the_sampler_order_is_that_of_the_numbers(tokenizer: Tokenizer) -> None:
    default = ("repetition", "top_k", "top_a", "tail_free", "typical", "top_p", "temperature")
    assert params_of(tokenizer).order == default
    assert params_of(tokenizer, sampler_order=[0, 1, 2, 3, 4, 5]).order[0] == "repetition"
    assert params_of(tokenizer, sampler_order="[6, 5, 0, 1, 3, 4, 2]").order[:2] == ("repetition", "temperature")


def test_breakers_come_as_json_in_a_string(tokenizer: Tokenizer) -> None:
    breakers = params_of(tokenizer, dry_sequence_breakers='["\\n", "."]').dry_breakers
    assert breakers == {i for i in range(tokenizer.vocab_size) if {10, 46} & set(tokenizer.token_bytes(i))}


def test_a_grammar_is_followed_past_banned_phrases(client: TestClient) -> None:
    pytest.importorskip("llguidance")
    body = {"prompt": PROMPT, "max_length": 40, "sampler_seed": 3, "grammar": 'root ::= ("a" | "b" | "c"){20}'}
    text = client.post("/api/v1/generate", json=body).json()["results"][0]["text"]
    assert len(text) == 20
    assert set(text) <= set("abc")
    other = client.post("/api/v1/generate", json=body | {"banned_tokens": [text[5:8]]}).json()["results"][0]
    assert len(other["text"]) == 20
    assert set(other["text"]) <= set("abc")
    assert text[5:8] not in other["text"]
    assert other["finish_reason"] == "stop"


def test_a_grammar_goes_on_where_its_state_is_retained(client: TestClient) -> None:
    pytest.importorskip("llguidance")
    body = {"prompt": PROMPT, "max_length": 3, "sampler_seed": 3, "grammar": 'root ::= "1" "2" "3" "4" "5"'}

    def written(**more: Any) -> str:
        return client.post("/api/v1/generate", json=body | more).json()["results"][0]["text"]

    first = written()
    assert first == "123"
    assert written(prompt=PROMPT + first, grammar_retain_state=True) == "45"
    assert written(prompt=PROMPT + "12", grammar_retain_state=True) == "345"  # cut by the writer
    assert written(prompt=PROMPT + "x", grammar_retain_state=True) == "123"  # not the grammar's: anew
    assert written(prompt=PROMPT + first) == "123"


def test_a_broken_grammar_is_refused_before_the_stream(client: TestClient) -> None:
    for path in ("/api/v1/generate", "/api/extra/generate/stream", "/v1/completions"):
        answer = client.post(path, json={"prompt": PROMPT, "grammar": "root ::= ("})
        assert answer.status_code == 422
        assert "the grammar cannot be used" in answer.text


def test_what_kobold_lite_asks_when_it_connects(client: TestClient) -> None:
    answers = [
        client.get(path).json()
        for path in (
            "/api/v1/model",
            "/api/v1/info/version",
            "/api/v1/config/max_context_length",
            "/api/extra/version",
            "/api/extra/true_max_context_length",
            "/api/extra/preloadstory",
        )
    ]
    assert answers[0] == {"result": "epilogue/little"}
    assert answers[1] == {"result": "1.2.5"}
    assert answers[2] == answers[4]
    assert answers[2]["value"] == 4 * 64  # of the length the model was trained on
    assert answers[3]["result"] == "KoboldCpp"
    assert tuple(map(int, answers[3]["version"].split("."))) >= (1, 49)  # memory field
    assert answers[5] == {}
    assert client.get("/api/latest/model").json() == answers[0]


def test_generate_gives_the_engines_tokens(client: TestClient, make_engine, tokenizer: Tokenizer) -> None:
    body = {"prompt": PROMPT, "memory": "It was night. ", "max_length": 20, "sampler_seed": 3, "n": 2}
    results = client.post("/api/v1/generate", json=body).json()["results"]
    engine: Engine = make_engine()
    sequence = engine.open_book(tokenizer.encode("It was night. " + PROMPT))
    params = params_of(tokenizer, max_length=20, sampler_seed=3)
    ids = list(engine.stream(sequence, params, eos_id=tokenizer.eos_id, num_tokens=tokenizer.vocab_size))
    assert results[0]["text"] == tokenizer.decode(ids)
    assert results[0]["completion_tokens"] + results[1]["completion_tokens"] == 2 * results[0]["completion_tokens"]
    assert results[0]["text"] != results[1]["text"]
    assert results[0]["finish_reason"] == "length"


def stream(client: TestClient, body: dict[str, Any]) -> str:
    return client.post("/api/extra/generate/stream", content=json.dumps(body)).text


def test_the_stream_to_the_byte(client: TestClient) -> None:
    body = {"prompt": PROMPT, "max_length": 8, "sampler_seed": 3}
    text = client.post("/api/v1/generate", json=body).json()["results"][0]["text"]
    raw = stream(client, body)
    assert "\r" not in raw
    events = raw.split("\n\n")
    assert events.pop() == ""
    told = [json.loads(event.removeprefix("event: message\ndata: ")) for event in events]
    assert all(event.startswith("event: message\ndata: {") for event in events)
    assert told[-1] == {"token": "", "finish_reason": "length"}
    assert all(message["finish_reason"] is None for message in told[:-1])
    assert "".join(message["token"] for message in told) == text


def test_a_stop_sequence_is_cut_off_or_kept(client: TestClient) -> None:
    body = {"prompt": PROMPT, "max_length": 40, "sampler_seed": 3}
    text = client.post("/api/v1/generate", json=body).json()["results"][0]["text"]
    stop = text[10:13]
    cut = client.post("/api/v1/generate", json=body | {"stop_sequence": [stop]}).json()["results"][0]
    kept = client.post("/api/v1/generate", json=body | {"stop_sequence": [stop], "trim_stop": False}).json()
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert kept["results"][0]["text"] == text[: text.index(stop)] + stop


def test_a_banned_phrase_is_never_written(client: TestClient) -> None:
    body = {"prompt": PROMPT, "max_length": 60, "sampler_seed": 3}
    text = client.post("/api/v1/generate", json=body).json()["results"][0]["text"]
    phrase = text[12:15]
    other = client.post("/api/v1/generate", json=body | {"banned_tokens": [phrase.upper()]}).json()["results"][0]
    assert phrase.lower() not in other["text"].lower()
    assert other["text"].startswith(text[:8])
    assert other["completion_tokens"] == 60
    streamed = stream(client, body | {"banned_tokens": [phrase]})
    assert (
        "".join(json.loads(line[6:])["token"] for line in streamed.splitlines() if line.startswith("data"))
        == (other["text"])
    )


def test_the_oldest_of_a_prompt_is_left_out_and_the_memory_kept(client: TestClient, tokenizer: Tokenizer) -> None:
    body = {"prompt": PROMPT * 30, "memory": "Nobody. ", "max_length": 4, "max_context_length": 40}
    result = client.post("/api/v1/generate", json=body).json()["results"][0]
    assert result["prompt_tokens"] == 36
    assert len(tokenizer.encode(PROMPT * 30)) > 100


def test_counting_has_no_limit(client: TestClient, tokenizer: Tokenizer) -> None:
    text = "word " * 60_000
    counted = client.post("/api/extra/tokencount", json={"prompt": text}).json()
    assert counted["value"] == len(counted["ids"]) == len(tokenizer.encode(text)) > 65_536
    assert client.post("/api/extra/detokenize", json={"ids": counted["ids"]}).json()["result"] == text


def test_a_text_can_be_asked_for_by_its_key(client: TestClient) -> None:
    body = {
        "prompt": PROMPT,
        "max_length": 8,
        "genkey": "KCPP1",
        "logprobs": True,
        "sampler_seed": 1,
        "bypass_eos": True,
    }
    text = client.post("/api/v1/generate", json=body).json()["results"][0]["text"]
    assert client.post("/api/extra/generate/check", json={"genkey": "KCPP1"}).json() == {"results": [{"text": text}]}
    assert client.post("/api/extra/generate/check", json={"genkey": "no"}).json() == {"results": [{"text": ""}]}
    content = client.post("/api/extra/last_logprobs", json={"genkey": "KCPP1"}).json()["logprobs"]["content"]
    assert len(content) == 8
    assert bytes(b for token in content for b in token["bytes"]).decode(errors="replace") == text
    assert all(len(token["top_logprobs"]) == 5 for token in content)


def test_abort_without_a_body_ends_the_latest(client: TestClient) -> None:
    assert client.post("/api/extra/abort").json() == {"success": "false", "done": "false"}
    client.post("/api/v1/generate", json={"prompt": PROMPT, "max_length": 1})
    assert client.post("/api/extra/abort").json()["success"] == "true"


def test_perf_tells_of_the_last_request(client: TestClient) -> None:
    client.post("/api/v1/generate", json={"prompt": PROMPT, "max_length": 5, "sampler_seed": 9})
    told = client.get("/api/extra/perf").json()
    assert (told["last_token_count"], told["last_seed"], told["total_gens"], told["queue"]) == (5, 9, 1, 0)
    assert told["last_eval_speed"] > 0
