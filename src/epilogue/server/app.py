"""The HTTP application: who may ask, how much, and what an error looks like. The endpoints are in the routes_ files."""

import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import Repr
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epilogue.errors import CapacityError, EpilogueError, RequestError, StateError
from epilogue.server import openai, routes_books, routes_kobold, routes_openai, routes_saves
from epilogue.server.grammars import Grammars
from epilogue.server.job import Job
from epilogue.server.log import AnswerLog, log_work
from epilogue.server.metrics import Metrics
from epilogue.server.protocol import QueueFullError
from epilogue.server.worker import Worker

_log = logging.getLogger("epilogue.server")
_RETRY_AFTER_S = 3
_REFUSALS: tuple[tuple[int | str, str], ...] = (
    (400, "no JSON, or nested too deeply"),
    (401, "no key, or a wrong one"),
    (413, "the body is too long"),
    (422, "a field cannot be so"),
    (503, "too many requests wait; Retry-After tells when to come again"),
    (507, "the text does not fit into memory"),
)
_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_OPEN_PATHS = ("/healthz",)
# How many times the length that a model was trained on ALiBi is relied on for (docs/log.md, "Past the trained length").
_EXTRAPOLATION = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server is run."""

    model_name: str
    api_key: str | None = None
    """Asked for as a bearer token; None asks for nothing."""
    allowed_origins: Sequence[str] = field(default_factory=lambda: ["*"])
    """Pages in browsers that may call; Kobold Lite needs its own, or any."""
    most_body_bytes: int = 64 * 2**20
    context_tokens: int | None = None
    """What clients are told that there is room for; None for what the model can be expected to read well."""
    saves: Path | None = None
    """A folder for what front ends save; None takes nothing."""


@dataclass(frozen=True)
class Desk:
    """What the endpoints work with, as ``request.app.state.desk``."""

    worker: Worker
    settings: Settings
    grammars: Grammars = field(default_factory=Grammars)

    @property
    def context_tokens(self) -> int:
        """How long a prompt clients should send: they cut the beginning off what is longer. Nothing is cut here."""
        config = self.worker.engine.model.config
        usual = config.max_seq_len if config.has_position_embedding else _EXTRAPOLATION * config.max_seq_len
        return min(self.worker.most_tokens, self.settings.context_tokens or usual)


def create_app(worker: Worker, settings: Settings) -> FastAPI:
    """An application around a worker, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(
        title="epilogue", lifespan=lifespan, responses={code: {"description": why} for code, why in _REFUSALS}
    )
    app.state.desk = Desk(worker, settings)
    app.include_router(routes_kobold.router)
    app.include_router(routes_openai.router)
    app.include_router(routes_books.router)
    app.include_router(routes_saves.router)
    app.add_middleware(_AnyContentType)
    app.add_middleware(_BodyLimit, most_bytes=settings.most_body_bytes)
    if settings.api_key:
        app.add_middleware(_KeyCheck, api_key=settings.api_key)
    app.add_middleware(
        CORSMiddleware, allow_origins=list(settings.allowed_origins), allow_methods=["*"], allow_headers=["*"]
    )
    app.add_middleware(AnswerLog)
    for kind in (RequestValidationError, HTTPException, ClientDisconnect, EpilogueError, RecursionError, Exception):
        app.add_exception_handler(kind, _on_error)

    metrics = Metrics(worker)

    def on_end(job: Job, *, outcome: str) -> None:
        metrics.count(job, outcome=outcome)
        log_work(job, outcome=outcome)

    worker.on_end = on_end

    @app.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server is there, and how much it has to do."""
        return {"status": "ok", "waiting": worker.num_waiting, "active": worker.num_active}

    return app


async def _on_error(request: Request, error: Exception) -> Response:
    status, message, kind = describe(error)
    # What came may be quoted, and what came may be no Unicode.
    message = message.encode(errors="replace").decode()
    if status == 500:
        _log.exception("a request failed", exc_info=error)
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if status == 503 else {}
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
    if request.url.path.startswith(("/v1", "/epilogue")):
        return JSONResponse(openai.error_body(message, kind), status, headers=headers)
    return JSONResponse({"detail": {"msg": message, "error": message, "type": kind}}, status, headers=headers)


def describe(error: Exception) -> tuple[int, str, str]:
    """Status, one sentence, and kind of an error."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return (
            422,
            f"{place or 'the body'}: {first['msg']}; got {_BRIEF.repr(first.get('input'))}",
            "invalid_request_error",
        )
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), "invalid_request_error"
    if isinstance(error, RequestError):
        return 422, str(error), "invalid_request_error"
    if isinstance(error, ClientDisconnect):
        return 499, "the client has gone", "gone"
    if isinstance(error, RecursionError):
        return 400, "the body is nested too deeply; send a plain object", "invalid_request_error"
    if isinstance(error, QueueFullError):
        return 503, str(error), "service_unavailable"
    if isinstance(error, CapacityError):
        return 507, str(error), "out_of_memory"
    if isinstance(error, StateError):
        return 507, str(error), "not_kept"
    return 500, "the server failed; its log says why", "server_error"


class _BodyLimit:
    """Refuses bodies that are too long, before they are in memory."""

    def __init__(self, app: ASGIApp, *, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most_bytes:
                raise HTTPException(413, f"the body is longer than {self.most_bytes} bytes; send less")
            return message

        await self.app(scope, limited if scope["type"] == "http" else receive, send)


class _AnyContentType:
    """Takes every body for JSON, as KoboldCpp does: its clients send what they like."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            # In place, for the log finds here what the router finds out.
            scope["headers"] = [*headers, (b"content-type", b"application/json")]
        await self.app(scope, receive, send)


class _KeyCheck:
    """Lets nobody in without the key. How long a refusal takes says nothing about the key."""

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        # Of a key that is not ASCII clients send either encoding, if it has both.
        self.app, self._wanted = app, [api_key.encode(errors="surrogateescape")]
        with suppress(UnicodeEncodeError):
            self._wanted.append(api_key.encode("latin-1"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            is_key = [hmac.compare_digest(given, wanted) for wanted in self._wanted]
            if scheme.lower() != b"bearer" or not any(is_key):
                error = openai.error_body("a valid key is wanted: Authorization: Bearer KEY", "unauthorized")
                body = error | {"detail": {"error": "Unauthorized", "msg": "Authentication key is missing or invalid."}}
                await JSONResponse(body, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)
