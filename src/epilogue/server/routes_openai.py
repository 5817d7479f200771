"""The endpoints of the OpenAI API."""

import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from epilogue.server import openai
from epilogue.server.events import EVENTS, EventStream, SignsOfLife, Ticket
from epilogue.server.grammars import Grammars
from epilogue.server.openai import ChatRequest, Choice, CompletionRequest, Usage
from epilogue.server.protocol import Ended, Generation, Piece, Scored, TokenLogprobs
from epilogue.text import Tokenizer

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/v1/models/{model:path}", responses={404: {"description": "no such model"}})
async def model(request: Request, model: str) -> Response:
    """The same, by its name."""
    name = request.app.state.desk.settings.model_name
    if model != name:
        return JSONResponse(openai.error_body(f"there is no model {model!r} here, only {name!r}", "not_found"), 404)
    return JSONResponse(_model(request))


def _model(request: Request) -> dict[str, Any]:
    desk = request.app.state.desk
    # The last is vLLM's name for it.
    known = {"id": desk.settings.model_name, "object": "model", "created": int(time.time()), "owned_by": "epilogue"}
    return known | {"max_model_len": desk.context_tokens}


@router.post("/v1/completions", responses=EVENTS)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Text that comes next."""
    tokenizer = request.app.state.desk.worker.tokenizer
    shape = _Completions(request, body)

    def generations() -> list[Generation]:
        return [_formed(request, body, openai.completion(body, prompt, tokenizer)) for prompt in openai.prompts(body)]

    return await _respond(request, body, await run_in_threadpool(generations), shape)


@router.post("/v1/chat/completions", responses=EVENTS)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Text that comes next, behind what was said."""
    tokenizer = request.app.state.desk.worker.tokenizer
    generation = await run_in_threadpool(lambda: _formed(request, body, openai.chat(body, tokenizer)))
    return await _respond(request, body, [generation], _Chats(request))


def _formed(request: Request, body: CompletionRequest | ChatRequest, generation: Generation) -> Generation:
    """With the grammar or the schema that is asked for; to compile it takes up to a second."""
    desk = request.app.state.desk
    grammars: Grammars = desk.grammars
    if body.response_format is not None and (schema := body.response_format.schema_wanted) is not None:
        return grammars.add_schema(generation, schema, desk.worker.tokenizer)
    return grammars.add(generation, body.grammar, desk.worker.tokenizer, retains=body.grammar_retain_state)


class _Shape:
    """What differs between the two."""

    kind: str
    identity: str

    def __init__(self, request: Request) -> None:
        desk = request.app.state.desk
        self.model: str = desk.settings.model_name
        self.tokenizer: Tokenizer = desk.worker.tokenizer
        self.identity = f"{self.identity}-{uuid4().hex}"

    def opening(self, choice: Choice, prompt_index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first piece."""
        return None

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, choice: Choice, prompt_index: int) -> dict[str, Any]:
        raise NotImplementedError

    def end(self, index: int, reason: str) -> dict[str, Any]:
        raise NotImplementedError


class _Completions(_Shape):
    kind, identity = "text_completion", "cmpl"

    def __init__(self, request: Request, body: CompletionRequest) -> None:
        super().__init__(request)
        self.echo = [openai.prompt_text(prompt, self.tokenizer) for prompt in openai.prompts(body)] if body.echo else []
        self.scores: dict[int, list[TokenLogprobs]] = {}

    def opening(self, choice: Choice, prompt_index: int) -> dict[str, Any] | None:
        if not self.echo:
            return None
        return {"index": choice.index, "text": self.echo[prompt_index], "finish_reason": None, "logprobs": None}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = openai.completion_logprobs(piece.logprobs, self.tokenizer) if piece.logprobs else None
        return {"index": index, "text": piece.text, "finish_reason": None, "logprobs": logprobs}

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "finish_reason": reason, "logprobs": None}

    def whole(self, choice: Choice, prompt_index: int) -> dict[str, Any]:
        before = self.echo[prompt_index] if self.echo else ""
        tokens = [*self.scores.get(prompt_index, ()), *choice.logprobs]
        logprobs = openai.completion_logprobs(tokens, self.tokenizer) if tokens else None
        return {
            "index": choice.index,
            "text": before + choice.text,
            "finish_reason": choice.finish_reason or "stop",
            "logprobs": logprobs,
        }


class _Chats(_Shape):
    kind, identity = "chat.completion", "chatcmpl"

    def opening(self, choice: Choice, prompt_index: int) -> dict[str, Any] | None:
        return {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = openai.chat_logprobs(piece.logprobs, self.tokenizer) if piece.logprobs else None
        return {"index": index, "delta": {"content": piece.text}, "finish_reason": None, "logprobs": logprobs}

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "finish_reason": reason}

    def whole(self, choice: Choice, prompt_index: int) -> dict[str, Any]:
        logprobs = openai.chat_logprobs(choice.logprobs, self.tokenizer) if choice.logprobs else None
        message = {"role": "assistant", "content": choice.text}
        return {
            "index": choice.index,
            "message": message,
            "finish_reason": choice.finish_reason or "stop",
            "logprobs": logprobs,
        }


async def _respond(
    request: Request, body: CompletionRequest | ChatRequest, generations: list[Generation], shape: _Shape
) -> Response:
    ticket = Ticket(request.app.state.desk.worker, generations)
    if not body.stream:
        return JSONResponse(await _collected(request, body, ticket, shape))
    await ticket.begin(request)
    with_usage = bool(body.stream_options.get("include_usage"))
    return EventStream(ticket, _lines(body.n, ticket, shape, with_usage=with_usage))


async def _collected(
    request: Request, body: CompletionRequest | ChatRequest, ticket: Ticket, shape: _Shape
) -> dict[str, Any]:
    usage = Usage()
    choices = [Choice(index) for index in range(len(ticket.jobs) * body.n)]
    for prompt_index, event in await ticket.all_events(request):
        usage.count(event)
        if isinstance(event, Piece | Ended):
            choices[prompt_index * body.n + event.index].take(event)
        elif isinstance(event, Scored) and isinstance(shape, _Completions):
            shape.scores.setdefault(prompt_index, []).extend(event.logprobs)
    told = [shape.whole(choice, choice.index // body.n) for choice in choices]
    return openai.answer(shape.kind, shape.identity, shape.model, told) | {"usage": usage.as_dict()}


async def _lines(num_texts: int, ticket: Ticket, shape: _Shape, *, with_usage: bool) -> AsyncIterator[str]:
    usage, signs = Usage(), SignsOfLife()
    kind = shape.kind + ("" if shape.kind == "text_completion" else ".chunk")

    def line(choices: list[dict[str, Any]], **more: Any) -> str:
        return openai.stream_data(openai.answer(kind, shape.identity, shape.model, choices) | more)

    try:
        for choice in (Choice(index) for index in range(len(ticket.jobs) * num_texts)):
            if (opening := shape.opening(choice, choice.index // num_texts)) is not None:
                yield line([opening])
        async for prompt_index, event in ticket.events():
            usage.count(event)
            if comment := signs.line(event):
                yield comment
            if isinstance(event, Piece):
                yield line([shape.delta(prompt_index * num_texts + event.index, event)])
            elif isinstance(event, Ended):
                reason = "length" if event.reason == "length" else "stop"
                yield line([shape.end(prompt_index * num_texts + event.index, reason)])
    except Exception as error:
        yield openai.stream_data(openai.error_body(str(error), "server_error"))
        return
    if with_usage:
        yield line([], usage=usage.as_dict())
    yield openai.stream_data("[DONE]")
