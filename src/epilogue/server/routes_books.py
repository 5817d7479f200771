"""The endpoints for whole books: which there are, reading one ahead of time, keeping, opening and removing it.

What is written in a book is told nobody, only its title, if it was given one. Pages in browsers that come from
elsewhere see nothing of this, not even by CORS's default, which lets Kobold Lite in everywhere else.
"""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from epilogue.engine import SamplingParams
from epilogue.errors import StateError
from epilogue.server import openai
from epilogue.server.book import BookRow
from epilogue.server.events import EVENTS, EventStream, Ticket
from epilogue.server.job import Job
from epilogue.server.protocol import Begun, Generation, Reading
from epilogue.server.worker import Worker

_OPEN = object()
BookId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


def _own_pages_only(request: Request) -> None:
    """Refuse pages of other sites: any may be open in the browser of whoever has their novel here."""
    origin, settings = request.headers.get("origin"), request.app.state.desk.settings
    if origin is None or settings.api_key or origin in settings.allowed_origins or _is_here(origin):
        return
    raise HTTPException(403, f"pages of {origin} may not ask for books; start the server with --allow-origin {origin}")


def _is_here(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_STRANGE: dict[int | str, dict[str, Any]] = {403: {"description": "a page of another site asks"}}
_NO_BOOK: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such book"},
    409: {"description": "its state on disk is damaged"},
}
router = APIRouter(prefix="/epilogue/v1", dependencies=[Depends(_own_pages_only)], responses=_STRANGE)


class NewBook(BaseModel):
    """A book to read."""

    model_config = ConfigDict(extra="ignore")

    text: Annotated[str, Field(min_length=1, max_length=64_000_000)]
    title: Annotated[str, Field(max_length=200)] = ""
    stream: bool = False
    """Whether to tell, as events, how far reading has come."""


@router.get("/books")
def books(request: Request) -> dict[str, Any]:
    """Every book that is open or kept on disk, the one used last first."""
    return {"books": [_as_dict(row) for row in _worker(request).shelf.listing()]}


@router.post("/books", status_code=201, responses=EVENTS)
async def read(request: Request, body: NewBook) -> Response:
    """Read a book, so that what is asked of it later begins at once; or find that it was read."""
    worker = _worker(request)
    generation = Generation(prompt=body.text, title=body.title, params=SamplingParams(max_new_tokens=0))
    ticket = Ticket(worker, [generation])
    if not body.stream:
        await ticket.all_events(request)
        return JSONResponse(_read_book(worker, ticket.jobs[0]), 201)
    await ticket.begin(request)
    return EventStream(ticket, _lines(worker, ticket))


@router.post("/books/{book_id}/save", responses=_NO_BOOK)
def save(request: Request, book_id: BookId) -> dict[str, Any]:
    """Write a book to disk now, and answer when it is there."""
    worker = _worker(request)
    _find(worker, book_id)
    worker.ask(lambda: worker.shelf.save(book_id)).result().result()
    worker.ask(worker.shelf.settle).result()
    return _as_dict(_find(worker, book_id))


@router.post("/books/{book_id}/open", responses=_NO_BOOK)
def open_book(request: Request, book_id: BookId) -> dict[str, Any]:
    """Bring a book from disk into memory, and answer when it is there."""
    worker = _worker(request)
    row, library = _find(worker, book_id), worker.shelf.library
    if not row.is_in_memory and row.kept is not None and library is not None:
        try:
            found = library.take(worker.engine, row.kept)
            opening = worker.shelf.open(found)
            while worker.ask(lambda: next(opening, _OPEN)).result() is not _OPEN:
                pass
        except StateError as error:
            raise HTTPException(409, str(error)) from error
    return _as_dict(_find(worker, book_id))


@router.delete("/books/{book_id}", status_code=204, responses=_NO_BOOK)
def remove(request: Request, book_id: BookId) -> None:
    """Close a book and remove it from disk. A request that is at work on it goes on."""
    worker = _worker(request)
    row = _find(worker, book_id)
    worker.ask(lambda: worker.shelf.forget(book_id)).result()
    if row.kept is not None and worker.shelf.library is not None:
        with suppress(StateError):  # somebody else was faster
            worker.shelf.library.remove(row.kept.id)


@router.get("/progress")
async def progress(request: Request, genkey: str | None = None) -> dict[str, Any]:
    """How far every request has come, in the order they are served; of one key's alone, if one is given."""
    jobs = [job for job in _worker(request).jobs() if genkey is None or job.generation.key == genkey]
    return {"requests": [_progress(job) for job in jobs]}


def _worker(request: Request) -> Worker:
    return request.app.state.desk.worker  # type: ignore[no-any-return]


def _find(worker: Worker, book_id: str) -> BookRow:
    for row in worker.shelf.listing():
        if row.id == book_id:
            return row
    raise HTTPException(404, f"there is no book {book_id}; GET /epilogue/v1/books lists all of them")


def _as_dict(row: BookRow) -> dict[str, Any]:
    kept = row.kept
    return {
        "id": row.id,
        "title": row.title or None,
        "tokens": row.num_tokens,
        "in_memory": row.is_in_memory,
        "bytes_in_memory": row.num_bytes,
        "on_disk": kept is not None,
        "bytes_on_disk": kept.num_bytes if kept else 0,
        "saving": bool(row.saving_id),
        "last_used": row.used_at.isoformat(timespec="seconds"),
    }


def _read_book(worker: Worker, job: Job) -> dict[str, Any]:
    found = [row for row in worker.shelf.listing() if row.id == job.book_id]
    known = {"tokens_read": job.num_read_tokens, "read_s": round(job.read_s, 3)}
    return (_as_dict(found[0]) if found else {"id": job.book_id}) | known


def _progress(job: Job) -> dict[str, Any]:
    phase = "writing" if job.is_read else "reading" if job.is_begun else "waiting"
    seconds_left = job.seconds_left if phase == "reading" else None
    return {
        "phase": phase,
        "tokens": job.num_prompt_tokens or None,
        "tokens_known": job.num_cached_tokens + job.num_read_tokens,
        "seconds_left": None if seconds_left is None else round(seconds_left, 1),
        "tokens_written": job.num_written_tokens,
    }


async def _lines(worker: Worker, ticket: Ticket) -> AsyncIterator[str]:
    [job] = ticket.jobs
    try:
        async for _, event in ticket.events():
            if isinstance(event, Begun | Reading):
                yield _event("progress", _progress(job))
    except Exception as error:
        yield _event("error", openai.error_body(str(error), "server_error"))
        return
    yield _event("book", _read_book(worker, job))


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
