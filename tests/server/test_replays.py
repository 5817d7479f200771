"""What Kobold Lite and SillyTavern send, in their order and shapes, and what they make of the bytes that come back."""

import json
import re
from typing import Any

from starlette.testclient import TestClient

from epilogue.server.kobold import KoboldRequest
from epilogue.server.openai import CompletionRequest
from epilogue.text import Tokenizer

PROMPT = "The wind went round"
LITE: dict[str, Any] = {
    "n": 1, "max_context_length": 8192, "max_length": 12, "rep_pen": 1.07, "temperature": 0.75, "top_p": 0.92,
    "top_k": 100, "top_a": 0, "typical": 1, "tfs": 1, "rep_pen_range": 360, "rep_pen_slope": 0.7,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5], "memory": "It was night. ", "trim_stop": True, "genkey": "KCPP3021",
    "min_p": 0, "dynatemp_range": 0, "dynatemp_exponent": 1, "smoothing_factor": 0, "nsigma": 0, "banned_tokens": [],
    "render_special": False, "logprobs": True, "replace_instruct_placeholders": True, "presence_penalty": 0,
    "logit_bias": {}, "stop_sequence": ["\n\n\n"], "use_default_badwordsids": False, "bypass_eos": True,
    "sampler_seed": 3, "prompt": PROMPT,
}  # fmt: skip
SILLY: dict[str, Any] = {
    "prompt": PROMPT, "model": "little", "max_new_tokens": 12, "max_tokens": 12, "logprobs": 10, "temperature": 0.9,
    "top_p": 0.9, "typical_p": 1, "typical": 1, "sampler_seed": 7, "min_p": 0.05, "repetition_penalty": 1.2,
    "frequency_penalty": 0, "presence_penalty": 0, "top_k": 40, "skew": 0, "min_tokens": 0, "length_penalty": 1,
    "early_stopping": False, "add_bos_token": True, "smoothing_factor": 0, "smoothing_curve": 1,
    "dry_allowed_length": 2, "dry_multiplier": 0.8, "dry_base": 1.75, "dry_sequence_breakers": '["\\n", ":", "\\""]',
    "dry_penalty_last_n": 0, "max_tokens_second": 0, "stopping_strings": ["\nYou:"], "stop": ["\nYou:"],
    "truncation_length": 8192, "ban_eos_token": False, "skip_special_tokens": True, "include_reasoning": True,
    "top_a": 0.1, "tfs": 0.95, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1,
    "custom_token_bans": "", "banned_strings": [], "api_type": "koboldcpp", "api_server": "http://127.0.0.1:5001/",
    "xtc_threshold": 0.1, "xtc_probability": 0, "nsigma": 0, "rep_pen": 1.2, "rep_pen_range": 512,
    "repetition_penalty_range": 512, "seed": 7, "guidance_scale": 1, "negative_prompt": "", "grammar_string": "",
    "repeat_penalty": 1.2, "tfs_z": 0.95, "repeat_last_n": 512, "n_predict": 12, "num_predict": 12, "num_ctx": 8192,
    "mirostat": 0, "ignore_eos": False, "n_probs": 10, "rep_pen_slope": 1, "sampler_order": [6, 0, 1, 3, 4, 2, 5],
    "grammar": "", "logit_bias": {}, "stream": True,
}  # fmt: skip


def as_lite_reads(raw: bytes) -> list[dict[str, Any]]:
    """Kobold Lite looks for an event line with its data line right below, ended by LF."""
    return [json.loads(data) for data in re.findall(r"event: message\ndata: (.*)\n\n", raw.decode())]


def as_sillytavern_reads(raw: bytes) -> list[str]:
    """SillyTavern cuts at empty lines and takes the data lines of what is between."""
    events = re.split(r"\r\n\r\n|\r\r|\n\n", raw.decode())[:-1]
    return ["\n".join(line[6:] for line in event.split("\n") if line.startswith("data: ")) for event in events]


def test_kobold_lite_connects_writes_looks_and_stops(client: TestClient) -> None:
    for path in (
        "/api/v1/model",
        "/api/v1/info/version",
        "/api/v1/config/max_context_length",
        "/api/v1/config/max_length",
        "/api/extra/version",
        "/api/extra/true_max_context_length",
        "/api/extra/preloadstory",
        "/api/extra/perf",
    ):
        assert client.get(path).status_code == 200, path
    assert client.get("/sdapi/v1/sd-models").status_code == 404  # Lite takes it for a server without pictures
    counted = client.post("/api/extra/tokencount", json={"prompt": PROMPT, "special": False}).json()
    assert counted["value"] == len(counted["ids"])
    events = as_lite_reads(client.post("/api/extra/generate/stream", json=LITE).content)
    text = "".join(event["token"] for event in events)
    assert [event["finish_reason"] for event in events if event["finish_reason"]] == ["length"]
    named = {"genkey": "KCPP3021"}
    assert client.post("/api/extra/generate/check", json=named).json()["results"][0]["text"] == text
    told = client.post("/api/extra/last_logprobs", json=named).json()["logprobs"]["content"]
    assert "".join(token["token"] for token in told).startswith(text[:3])
    assert client.post("/api/extra/abort", json=named).json() == {"success": "true", "done": "true"}


def test_sillytaverns_kobold_writes_and_aborts_without_a_body(client: TestClient) -> None:
    for path in ("/api/v1/info/version", "/api/extra/version", "/api/v1/model"):
        assert client.get(path).status_code == 200
    body = {name: LITE[name] for name in ("prompt", "max_context_length", "max_length", "rep_pen", "temperature")}
    flags = dict.fromkeys(("use_story", "use_memory", "use_authors_note", "use_world_info", "singleline"), False)
    body |= flags | {"sampler_seed": 3, "rep_pen_range": "512", "top_k": "40", "grammar": ""}
    whole = client.post("/api/v1/generate", json=body).json()["results"][0]["text"]
    raw = client.post("/api/extra/generate/stream", json=body).content
    assert "".join(json.loads(data)["token"] for data in as_sillytavern_reads(raw)) == whole
    assert client.post("/api/extra/abort").status_code == 200


def test_sillytaverns_text_completion_keeps_its_samplers(client: TestClient, tokenizer: Tokenizer) -> None:
    """It asks /v1/completions and sends KoboldCpp's fields there, under every name they have anywhere."""
    assert client.get("/v1/models").status_code == 200
    asked = CompletionRequest.model_validate(SILLY).sampling_params(tokenizer)
    same = {name: SILLY[name] for name in SILLY if name in KoboldRequest.model_fields}
    wanted = KoboldRequest.model_validate(same | {"max_length": 12}).sampling_params(tokenizer)
    assert asked == wanted
    assert (asked.top_a, asked.tail_free, asked.repetition_penalty, asked.dry_multiplier) == (0.1, 0.95, 1.2, 0.8)
    events = as_sillytavern_reads(client.post("/v1/completions", json=SILLY).content)
    assert events.pop() == "[DONE]"
    assert all("text" in json.loads(event)["choices"][0] for event in events)
    assert client.post("/api/extra/abort").status_code == 200
