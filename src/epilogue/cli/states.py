"""`epilogue states`: what is kept of books that were read."""

import json

from rich.console import Console
from rich.table import Table

from epilogue.cli.settings import in_words
from epilogue.engine import Kept, Library

_LEAST_WIDTH = 120  # of the table, where stdout is no terminal


def run_list(library: Library, *, as_json: bool) -> None:
    """Show every state, the one used last first."""
    every = library.all()
    if as_json:
        print(json.dumps([_as_dict(kept) for kept in every]))
        return
    total, limit = sum(kept.num_bytes for kept in every), library.limit_bytes()
    if every:
        _draw(every)
    Console(stderr=True, highlight=False, markup=False).print(
        f"{len(every)} kept, {in_words(total)} of at most {in_words(limit)} in {library.folder}",
        style="dim",
        soft_wrap=True,
    )


def run_remove(library: Library, ids: list[str]) -> None:
    """Remove states by the beginnings of their ids.

    Raises:
        StateError: an id is nobody's, or several states'; those before it are removed.
    """
    for start in ids:
        print(f"removed {_named(library.remove(start))}")


def run_clear(library: Library) -> None:
    """Remove every state."""
    gone = library.clear()
    print(f"removed {len(gone)} kept books, {in_words(sum(kept.num_bytes for kept in gone))}")


def _named(kept: Kept) -> str:
    title = kept.header.title if kept.header else ""
    return f"{kept.id} ({title or 'a book without a title'}, {in_words(kept.num_bytes)})"


def _as_dict(kept: Kept) -> dict[str, object]:
    header = kept.header
    said = {
        "id": kept.id,
        "path": str(kept.path),
        "bytes": kept.num_bytes,
        "used_at": kept.used_at.isoformat(timespec="seconds"),
        "problem": kept.problem or None,
    }
    if header is None:
        return said
    return said | {
        "title": header.title or None,
        "tokens": header.num_tokens,
        "model": header.model,
        "fingerprint": header.fingerprint,
        "kv_storage": header.storage,
        "epsilon": header.epsilon,
        "read_on": header.read_on,
    }


def _draw(every: list[Kept]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "book", "tokens", "size", "model", "storage", "read on", "last used"):
        table.add_column(heading, justify="right" if heading in ("tokens", "size") else "left", overflow="fold")
    for kept in every:
        used, size, header = f"{kept.used_at:%Y-%m-%d}", in_words(kept.num_bytes), kept.header
        if header is None:
            table.add_row(kept.id[:8], "not usable", "", size, "", "", "", used)
            continue
        title, tokens = header.title or "without a title", f"{header.num_tokens:,}"
        table.add_row(kept.id[:8], title, tokens, size, header.model, header.storage, header.read_on, used)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    console.print(table)
