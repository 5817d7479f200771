"""KoboldCpp's endpoints for stories that are saved with the server; off unless whoever started it named a folder."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from epilogue.server.saves import MOST_CHARACTERS, NUM_SLOTS, Save, Saves

router = APIRouter(prefix="/api/extra/data")


def _as_slot(value: object) -> int:
    """Clients send it as a number or as a string; what is neither is no slot."""
    try:
        return int(str(value))
    except ValueError:
        return -1


class Slot(BaseModel):
    """A body that names a slot."""

    model_config = ConfigDict(extra="ignore")
    slot: Annotated[int, BeforeValidator(_as_slot)] = 0


class Story(Slot):
    """A story to save; without data the slot is emptied."""

    slot: Annotated[int, BeforeValidator(_as_slot)] = -1
    title: Annotated[str, Field(max_length=500)] | None = None
    format: Annotated[str, Field(max_length=100)] | None = None
    data: str | None = None


def _saves(request: Request) -> Saves | None:
    folder = request.app.state.desk.settings.saves
    return Saves(folder) if folder else None


@router.post("/list")
def titles(request: Request) -> list[str]:
    """The title of every slot; nothing if there are no slots."""
    saves = _saves(request)
    return saves.titles() if saves else []


@router.post("/load")
def load(request: Request, body: Slot) -> dict[str, Any]:
    """What a slot holds."""
    saves = _saves(request)
    save = saves.load(body.slot) if saves and 0 <= body.slot < NUM_SLOTS else None
    data = {"title": save.title, "format": save.format, "data": save.data} if save else None
    return {"success": save is not None, "data": data}


@router.post("/save")
def store(request: Request, body: Story) -> Response:
    """Fill a slot, or empty it."""
    saves = _saves(request)
    if saves is None:
        return _answer("no folder for saves; start the server with --saves FOLDER")
    if not 0 <= body.slot < NUM_SLOTS:
        return _answer(f"slot must be 0 to {NUM_SLOTS - 1}")
    if body.data and len(body.data) > MOST_CHARACTERS:
        return _answer(f"the story is longer than {MOST_CHARACTERS} characters")
    save = Save(body.title or "Untitled Save", body.format or "", body.data) if body.data else None
    try:
        saves.store(body.slot, save)
    except OSError as error:
        return _answer(f"the disk refuses it ({error.strerror or error})", status=507)
    return _answer("")


def _answer(error: str, *, status: int = 400) -> Response:
    return JSONResponse({"success": not error, "error": error}, status if error else 200)
