"""The endpoints of the Kobold API, United's and KoboldCpp's."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any
from weakref import ref

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

import epilogue
from epilogue.server import kobold, openai
from epilogue.server.events import EVENTS, EventStream, SignsOfLife, Ticket
from epilogue.server.kobold import KoboldRequest
from epilogue.server.openai import Choice, Usage
from epilogue.server.protocol import Done, Ended, Event, Generation, Piece

router = APIRouter()
_MOST_KEYS = 256
_ABSENT = (
    "txt2img", "vision", "audio", "transcribe", "multiplayer", "websearch", "tts", "embeddings", "admin",
    "guidance", "jinja", "mcp", "music", "router",
)  # fmt: skip
_NO_FIGURES = {
    "last_process": 0, "last_process_time": 0, "last_process_speed": 0, "last_eval": 0, "last_eval_time": 0,
    "last_eval_speed": 0, "last_token_count": 0, "last_input_count": 0, "last_seed": -1, "stop_reason": -1,
}  # fmt: skip


@dataclass
class Running:
    """What is known of a request by its key, also when it is done. It keeps no book in memory."""

    ticket: "ref[Ticket] | None" = None
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)


@dataclass
class Desk:
    """What the Kobold endpoints remember between requests."""

    by_key: OrderedDict[str, Running] = field(default_factory=OrderedDict)
    started_s: float = field(default_factory=time.monotonic)
    last: dict[str, Any] = field(default_factory=dict)
    num_done: int = 0

    def begin(self, key: str | None, ticket: Ticket) -> Running:
        """Remember a request; the oldest are forgotten."""
        running = self.by_key[key or ""] = Running(ref(ticket))
        self.by_key.move_to_end(key or "")
        while len(self.by_key) > _MOST_KEYS:
            self.by_key.popitem(last=False)
        return running


class Keyed(BaseModel):
    """A body that names a request, or nothing."""

    model_config = ConfigDict(extra="ignore")
    genkey: Annotated[str, Field(max_length=200)] | None = None


class Text(BaseModel):
    """A text to count."""

    model_config = ConfigDict(extra="ignore")
    prompt: Annotated[str, Field(max_length=64_000_000)] = ""


class Ids(BaseModel):
    """Tokens to turn into text."""

    model_config = ConfigDict(extra="ignore")
    ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=10_000_000, fail_fast=True)] = []


def _memory(request: Request) -> Desk:
    state = request.app.state
    if not hasattr(state, "kobold"):
        state.kobold = Desk()
    return state.kobold  # type: ignore[no-any-return]


@router.get("/api/v1/model")
@router.get("/api/latest/model")
async def model(request: Request) -> dict[str, str]:
    """The model's name."""
    return {"result": f"epilogue/{request.app.state.desk.settings.model_name}"}


@router.get("/api/v1/info/version")
@router.get("/api/latest/info/version")
async def version() -> dict[str, str]:
    """Of the United API."""
    return {"result": kobold.API_VERSION}


@router.get("/api/v1/config/max_context_length")
@router.get("/api/latest/config/max_context_length")
async def max_context_length(request: Request) -> dict[str, int]:
    """How long prompt and answer should be together: clients leave out the beginning of what is longer."""
    return {"value": request.app.state.desk.context_tokens}


@router.get("/api/v1/config/max_length")
@router.get("/api/latest/config/max_length")
async def max_length() -> dict[str, int]:
    """Tokens written if a request does not say how many."""
    return {"value": KoboldRequest().max_length}


@router.get("/api/v1/config/soft_prompt")
@router.get("/api/latest/config/soft_prompt")
async def soft_prompt() -> dict[str, str]:
    """There is none."""
    return {"value": ""}


@router.get("/api/v1/config/soft_prompts_list")
@router.get("/api/latest/config/soft_prompts_list")
async def soft_prompts_list() -> dict[str, list[str]]:
    """There are none."""
    return {"values": []}


@router.get("/api/extra/version")
async def extra_version(request: Request) -> dict[str, Any]:
    """Which of KoboldCpp's features there are."""
    settings = request.app.state.desk.settings
    spoken = {"result": "KoboldCpp", "version": kobold.KOBOLDCPP_VERSION, "protected": bool(settings.api_key)}
    return spoken | dict.fromkeys(_ABSENT, False) | {"savedata": bool(settings.saves), "epilogue": epilogue.__version__}


@router.get("/api/extra/true_max_context_length")
async def true_max_context_length(request: Request) -> dict[str, int]:
    """The same as max_context_length."""
    return {"value": request.app.state.desk.context_tokens}


@router.get("/api/extra/preloadstory")
async def preloadstory() -> dict[str, Any]:
    """No story is preloaded."""
    return {}


@router.get("/api/extra/perf")
async def perf(request: Request) -> dict[str, Any]:
    """Figures of the last request, and of the queue."""
    memory, worker = _memory(request), request.app.state.desk.worker
    queue = worker.num_waiting + worker.num_active
    now = {"queue": queue, "idle": int(queue == 0), "uptime": int(time.monotonic() - memory.started_s), "quiet": True}
    return _NO_FIGURES | memory.last | now | {"total_gens": memory.num_done}


@router.post("/api/extra/tokencount")
@router.post("/api/extra/tokenize")
def tokencount(request: Request, body: Text) -> Response:
    """How many tokens a text is, however long, and which."""
    ids = request.app.state.desk.worker.tokenizer.encode(body.prompt)
    # Written out here, in a thread: for a whole book it takes long enough to hold up everybody's stream.
    return JSONResponse({"value": len(ids), "ids": ids})


@router.post("/api/extra/detokenize")
def detokenize(request: Request, body: Ids) -> dict[str, Any]:
    """The text of tokens."""
    return {"result": request.app.state.desk.worker.tokenizer.decode(body.ids), "success": True}


@router.get("/api/extra/generate/check", operation_id="check_latest")
@router.post("/api/extra/generate/check")
async def check(request: Request, body: Keyed | None = None) -> dict[str, Any]:
    """What a running request has written so far."""
    return {"results": [{"text": _running(request, body).text}]}


@router.get("/api/extra/last_logprobs", operation_id="last_logprobs_latest")
@router.post("/api/extra/last_logprobs")
async def last_logprobs(request: Request, body: Keyed | None = None) -> dict[str, Any]:
    """How likely the tokens were that a request has written."""
    tokenizer = request.app.state.desk.worker.tokenizer
    logprobs = _running(request, body).logprobs
    return {"logprobs": openai.chat_logprobs(logprobs, tokenizer) if logprobs else None}


@router.post("/api/extra/abort")
async def abort(request: Request, body: Keyed | None = None) -> dict[str, str]:
    """End a request within one step; the latest, if none is named."""
    running = _running(request, body)
    if running.ticket is not None and (ticket := running.ticket()) is not None:
        ticket.cancel()
    done = "true" if running.ticket is not None else "false"
    return {"success": done, "done": done}


def _running(request: Request, body: Keyed | None) -> Running:
    known = _memory(request).by_key
    if body is not None and body.genkey is not None:
        return known.get(body.genkey, Running())
    return next(reversed(known.values()), Running())


@router.post("/api/v1/generate")
@router.post("/api/latest/generate")
async def generate(request: Request, body: KoboldRequest) -> dict[str, Any]:
    """Write, and answer when all is written."""
    worker = request.app.state.desk.worker
    generation = await run_in_threadpool(_generation, request, body)
    ticket = Ticket(worker, [generation])
    running, usage = _memory(request).begin(generation.key, ticket), Usage()
    choices = [Choice(i) for i in range(generation.num_texts)]
    for _, event in await ticket.all_events(request, lambda event: _note(request, running, ticket, event)):
        usage.count(event)
        if isinstance(event, Piece | Ended):
            choices[event.index].take(event)
    return {
        "results": [
            {
                "text": choice.text,
                "finish_reason": choice.finish_reason or "stop",
                "logprobs": openai.chat_logprobs(choice.logprobs, worker.tokenizer) if choice.logprobs else None,
                "prompt_tokens": usage.prompt,
                "completion_tokens": usage.completion,
            }
            for choice in choices
        ]
    }


@router.post("/api/extra/generate/stream", response_class=Response, responses=EVENTS)
async def generate_stream(request: Request, body: KoboldRequest) -> Response:
    """Write, and tell every piece as it comes."""
    generation = await run_in_threadpool(_generation, request, body.model_copy(update={"n": 1}))
    ticket = Ticket(request.app.state.desk.worker, [generation])
    running = _memory(request).begin(generation.key, ticket)
    await ticket.begin(request)

    async def lines() -> AsyncIterator[str]:
        signs = SignsOfLife()
        async for _, event in ticket.events():
            _note(request, running, ticket, event)
            if text := kobold.stream_event(event) or signs.line(event):
                yield text

    return EventStream(ticket, lines())


def _generation(request: Request, body: KoboldRequest) -> Generation:
    """Compiles a grammar, which takes up to a second."""
    desk = request.app.state.desk
    generation = kobold.generation_of(body, desk.worker.tokenizer)
    told: Generation = desk.grammars.add(
        generation, body.grammar, desk.worker.tokenizer, retains=body.grammar_retain_state
    )
    return told


def _note(request: Request, running: Running, ticket: Ticket, event: Event) -> None:
    """Keep what ``check``, ``last_logprobs`` and ``perf`` tell."""
    memory = _memory(request)
    if isinstance(event, Piece) and event.index == 0:
        running.text += event.text
        running.logprobs.extend(event.logprobs)
    elif isinstance(event, Ended):
        memory.last |= {"last_token_count": event.num_tokens, "last_seed": event.seed}
        memory.last |= {"stop_reason": {"length": 0, "stop": 2, "cancelled": -1}[event.reason]}
    elif isinstance(event, Done):
        [job] = ticket.jobs
        num_read, num_written = job.num_prompt_tokens - job.num_cached_tokens, memory.last.get("last_token_count", 0)
        memory.num_done += 1
        memory.last |= {
            "last_input_count": job.num_prompt_tokens,
            "last_process_time": event.read_s,
            "last_eval_time": event.write_s,
            "last_process": 1000 * event.read_s / max(1, num_read),
            "last_eval": 1000 * event.write_s / max(1, num_written),
            "last_process_speed": num_read / max(event.read_s, 1e-9),
            "last_eval_speed": num_written / max(event.write_s, 1e-9),
        }
