"""`epilogue read`: a book is read once and kept, so that writing behind it begins at once."""

import json
from dataclasses import dataclass

from rich.console import Console

from epilogue.checkpoint import load_tokenizer
from epilogue.cli.reading import Reading
from epilogue.cli.settings import BUNDLED_BOOK, open_engine, open_model
from epilogue.cli.shelf import Shelf
from epilogue.engine import Library
from epilogue.text import Book, read_book


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the command line was given."""

    book: str | None
    model: str | None
    device: str
    dtype: str
    kv_storage: str
    epsilon: float
    library: Library
    as_json: bool


def run_read(options: ReadOptions) -> None:
    """Read and keep; Ctrl-C keeps what was read so far, with exit code 130.

    Raises:
        EpilogueError: an option, the book or the model is not usable, or the book does not fit.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    book = read_book(BUNDLED_BOOK if options.book is None else options.book)
    with console.status("loading the model"):
        checkpoint = open_model(options.model, device=options.device, dtype=options.dtype)
        tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
        engine = open_engine(checkpoint, storage=options.kv_storage, epsilon=options.epsilon)
    ids = tokenizer.encode(book.text.rstrip() + "\n\n")
    shelf = Shelf(
        options.library,
        console,
        title=book.title or "",
        model=options.model or checkpoint.directory.name,
        least_tokens=1,
    )
    reading, is_cut = Reading(engine=engine, ids=ids, shelf=shelf), False
    try:
        reading.run(console)
    except KeyboardInterrupt:
        is_cut = True
    if options.as_json:
        print(json.dumps(_as_dict(book, reading, shelf)))
    else:
        console.print(_closing_line(reading), soft_wrap=True)
    if is_cut:
        raise SystemExit(130)


def _closing_line(reading: Reading) -> str:
    of = "" if reading.num_known == len(reading.ids) else f" of {len(reading.ids):,}"
    rate = f" in {reading.read_s:.1f} s ({reading.num_read / reading.read_s:,.0f} tok/s)" if reading.num_read else ""
    rest = "; the same command goes on from there" if of else ""
    return f"{reading.num_known:,}{of} tokens are known, {reading.num_read:,} of them read now{rate}{rest}"


def _as_dict(book: Book, reading: Reading, shelf: Shelf) -> dict[str, object]:
    kept = shelf.kept or (shelf.opened.kept if shelf.opened else None)
    return {
        "title": book.title,
        "tokens": len(reading.ids),
        "tokens_known": reading.num_known,
        "tokens_read": reading.num_read,
        "read_s": round(reading.read_s, 3),
        "id": kept.id if kept else None,
        "bytes": kept.num_bytes if kept else 0,
        "path": str(kept.path) if kept else None,
    }
