"""The Kobold API's words: requests to generations, events to answers. No input or output happens here."""

import json
from typing import Annotated

from pydantic import BeforeValidator, Field

from epilogue.server.protocol import Ended, Event, Generation, Piece
from epilogue.server.samplers import SamplerFields, Text
from epilogue.text import Tokenizer

API_VERSION = "1.2.5"
"""Of the United API: clients open features by it."""
KOBOLDCPP_VERSION = "1.102"
"""The KoboldCpp whose extra endpoints are spoken: clients open features by it."""


class KoboldRequest(SamplerFields):
    """The body of ``generate``, after aliases."""

    prompt: Text = ""
    memory: Text = ""
    genkey: Annotated[str, Field(max_length=200)] | None = None
    logprobs: Annotated[int, BeforeValidator(lambda x: 5 if x is True else x)] = 0


def generation_of(request: KoboldRequest, tokenizer: Tokenizer) -> Generation:
    """The generation that a request asks for, its grammar apart.

    Raises:
        RequestError: a field is out of range.
    """
    return Generation(
        prompt=request.prompt,
        memory=request.memory,
        params=request.sampling_params(tokenizer),
        num_texts=request.n,
        stop=request.stops,
        keeps_stop=not request.trim_stop,
        banned_phrases=request.banned_phrases,
        num_logprobs=min(request.logprobs, 20) if request.logprobs > 0 else None,
        max_context_tokens=request.max_context_length,
        key=request.genkey,
    )


def stream_event(event: Event) -> str | None:
    """What the stream says of an event: its exact lines matter to the clients, LF and not CRLF among them."""
    if isinstance(event, Piece):
        return _message(event.text, None)
    if isinstance(event, Ended):
        return _message("", "length" if event.reason == "length" else "stop")
    return None


def _message(token: str, finish_reason: str | None) -> str:
    return f"event: message\ndata: {json.dumps({'token': token, 'finish_reason': finish_reason})}\n\n"
