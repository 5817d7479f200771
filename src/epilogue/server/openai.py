"""OpenAI's completions and chat completions: requests to generations, events to answers. No input or output here."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from epilogue.errors import RequestError
from epilogue.server.protocol import Begun, Ended, Event, Generation, Piece, TokenLogprobs
from epilogue.server.samplers import MOST_BIASES, SamplerFields, as_list, not_too_many
from epilogue.text import Tokenizer

MOST_PROMPTS = 64
"""Of one request: as many as may wait, or it would find no place however often it is tried."""
_REFUSED = {
    "suffix": "text is written only behind a prompt",
    "tools": "a story model calls no tools",
    "functions": "a story model calls no functions",
}


# Of millions of wrong parts the first is told; an error for each would be gigabytes.
_Ids = Annotated[list[int], Field(fail_fast=True)]


class SchemaOfFormat(BaseModel):
    """Where a JSON schema stands in a response format."""

    model_config = ConfigDict(extra="ignore")
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}


class ResponseFormat(BaseModel):
    """Text as it comes, JSON, or JSON of a schema."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaOfFormat = SchemaOfFormat()

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """What the text must be JSON of; None if it need not be."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.type == "json_object" else self.json_schema.schema_


class _Request(SamplerFields, BaseModel):
    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] = {}
    response_format: ResponseFormat | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    rep_pen_range: int = 2048
    sampler_order: Annotated[list[int], Field(max_length=16, fail_fast=True), BeforeValidator(as_list)] = [
        6,
        5,
        0,
        1,
        2,
        3,
        4,
    ]
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MOST_BIASES),
        BeforeValidator(not_too_many),
    ] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        for name, reason in _REFUSED.items() if isinstance(body, Mapping) else ():
            if body.get(name) not in (None, "", [], {}):
                raise ValueError(f"{name} is not supported: {reason}; leave it out")
        return body


class CompletionRequest(_Request):
    """The body of /v1/completions, after aliases."""

    max_length: Annotated[int, Field(ge=0, le=1_000_000)] = 16
    prompt: str | _Ids | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[_Ids], Field(fail_fast=True)] = ""
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Message(BaseModel):
    """One of a chat."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        """Its text, whichever way it was sent.

        Raises:
            RequestError: it holds an image or a sound.
        """
        parts = self.content if isinstance(self.content, list) else [{"text": self.content or ""}]
        if any(part.get("type", "text") != "text" for part in parts):
            raise RequestError("messages can hold nothing but text")
        return "".join(str(part.get("text", "")) for part in parts)


class ChatRequest(_Request):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0


def prompts(request: CompletionRequest) -> list[str | tuple[int, ...]]:
    """The prompts of a request, one or several, as text or as ids.

    Raises:
        RequestError: more than one request may have.
    """
    given = request.prompt
    if isinstance(given, str):
        return [given]
    if all(isinstance(part, int) for part in given):
        return [tuple(part for part in given if isinstance(part, int))]
    if len(given) > MOST_PROMPTS:
        raise RequestError(f"prompt holds {len(given)} texts, and at most {MOST_PROMPTS} are taken; ask several times")
    return [part if isinstance(part, str) else tuple(part) for part in given if not isinstance(part, int)]


def prompt_text(prompt: str | tuple[int, ...], tokenizer: Tokenizer) -> str:
    """A prompt as text."""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def completion(request: CompletionRequest, prompt: str | tuple[int, ...], tokenizer: Tokenizer) -> Generation:
    """The generation that one prompt asks for, its grammar apart.

    Raises:
        RequestError: a field is out of range.
    """
    generation = _generation(request, prompt, request.logprobs, tokenizer)
    return replace(generation, scores_prompt=request.echo and request.logprobs is not None)


def chat(request: ChatRequest, tokenizer: Tokenizer) -> Generation:
    """The generation that a chat asks for: a story model is told what was said as plain text.

    Instructions stand first, in paragraphs of their own; what users and assistant wrote follows as one text, as if
    they had written it together.

    Raises:
        RequestError: a field is out of range, or a message holds something else than text.
    """
    told = [message.text.strip() for message in request.messages if message.role in ("system", "developer")]
    story = [message.text for message in request.messages if message.role in ("user", "assistant")]
    text = "\n\n".join([*(part for part in told if part), *(part.strip("\n") for part in story if part.strip())])
    return _generation(request, text, request.top_logprobs if request.logprobs else None, tokenizer)


def _generation(
    request: _Request, prompt: str | tuple[int, ...], logprobs: int | None, tokenizer: Tokenizer
) -> Generation:
    return Generation(
        prompt=prompt,
        params=request.sampling_params(tokenizer),
        num_texts=request.n,
        stop=request.stops,
        keeps_stop=not request.trim_stop,
        banned_phrases=request.banned_phrases,
        num_logprobs=logprobs,
        max_context_tokens=request.max_context_length,
    )


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass
class Usage:
    """Tokens of a request, added up over its prompts."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def count(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Begun):
            self.prompt += event.num_prompt_tokens
            self.cached += event.num_cached_tokens
        elif isinstance(event, Ended):
            self.completion += event.num_tokens

    def as_dict(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class Choice:
    """One continuation as it comes."""

    index: int
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, event: Piece | Ended) -> None:
        """Grow by an event."""
        if isinstance(event, Piece):
            self.pieces.append(event.text)
            self.logprobs.extend(event.logprobs)
        else:
            self.finish_reason = "length" if event.reason == "length" else "stop"

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


def completion_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, *, offset: int = 0) -> dict[str, Any]:
    """Log probabilities as /v1/completions tells them; ``offset`` is the character the first token begins at."""
    texts = [tokenizer.token_text(token.token_id) for token in tokens]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{tokenizer.token_text(i): x for i, x in token.top} or None for token in tokens],
        "text_offset": offsets[:-1],
    }


def chat_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log probabilities as /v1/chat/completions, and KoboldCpp, tell them."""

    def told(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": _finite(logprob),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    content = [told(t.token_id, t.logprob) | {"top_logprobs": [told(i, x) for i, x in t.top]} for t in tokens]
    return {"content": content}


def _finite(logprob: float) -> float | None:
    """JSON has no infinity, and the first token of a text no probability."""
    return logprob if logprob > float("-inf") else None


def answer(kind: str, identity: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The frame of an answer, or of a piece of one."""
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model, "choices": choices}


def stream_data(data: Mapping[str, Any] | str) -> str:
    """One event of a stream."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
