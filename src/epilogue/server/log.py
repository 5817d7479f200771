"""The server's log: a line of JSON each, with figures and never a word of anybody's story."""

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epilogue.server.job import Job

_log = logging.getLogger("epilogue.server")


class JsonLines(logging.Formatter):
    """Time, level, logger and message, the figures of a request, and where an error came from.

    Of an error its kind and its places are told, and not what it says: that may quote what was being worked on. Of a
    message only the first line, for the others are asyncio's picture of the same.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().partition("\n")[0],
        }
        said |= getattr(record, "figures", {})
        if record.exc_info and record.exc_info[1] is not None:
            frames = traceback.extract_tb(record.exc_info[1].__traceback__)
            said["error"] = type(record.exc_info[1]).__name__
            said["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(said)


def write_log(*, requests: bool) -> None:
    """Let this process's log go to stderr: warnings and errors, and what was done for every request if asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _log.setLevel(logging.INFO if requests else logging.WARNING)


def log_work(job: Job, *, outcome: str) -> None:
    """What was done for one prompt."""
    now = time.monotonic()
    figures = {
        "outcome": outcome,
        "prompt_tokens": job.num_prompt_tokens,
        "cached_tokens": job.num_cached_tokens,
        "read_tokens": job.num_read_tokens,
        "written_tokens": job.num_written_tokens,
        "waited_s": round((job.begun_s or now) - job.created_s, 3),
        "worked_s": round(now - job.begun_s, 3) if job.begun_s else 0.0,
    }
    _log.info("work", extra={"figures": figures})


class AnswerLog:
    """Tells of every request when it has been answered. Of its path only the pattern is told: ids may be names."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and tell."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            figures = {
                "method": scope["method"],
                "route": getattr(scope.get("route"), "path", None),
                "status": status,
                "seconds": round(time.monotonic() - start, 3),
            }
            _log.info("answer", extra={"figures": figures})
