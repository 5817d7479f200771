"""`epilogue evaluate`: bits per byte and loss by position, as a table one can look at."""

import json
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_tokenizer
from epilogue.cli.progress import Watch
from epilogue.cli.settings import open_model
from epilogue.data import iterate_documents
from epilogue.evals import LossByPosition, loss_by_position

_BAR_WIDTH = 28


def run_evaluate(
    texts: list[Path],
    *,
    model: str | None,
    context_tokens: int,
    max_books: int | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Evaluate one model on held-out books; the running figure goes to stderr, the result to stdout.

    Ctrl-C ends with the result so far, and exit code 130.

    Raises:
        EpilogueError: a book or the model cannot be read.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("loading the model"):
        checkpoint = open_model(model, device=device, dtype=dtype)
        tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    sums, is_cut = LossByPosition(), False
    with Watch(console, "evaluating", unit="books", total=max_books) as watch:

        def on_book(so_far: LossByPosition) -> None:
            nonlocal sums
            sums = so_far
            watch.update(sums.num_books, f"{sums.bits_per_byte:.4f} bits/byte so far")

        documents = islice(iterate_documents(texts), max_books)
        books = (document.text for document in documents)
        try:
            loss_by_position(checkpoint.model, tokenizer, books, context_tokens=context_tokens, on_book=on_book)
        except KeyboardInterrupt:
            is_cut = True
    if is_cut:
        console.print(f"stopped after {sums.num_books:,} book" + ("" if sums.num_books == 1 else "s"))
    if sums.num_books and as_json:
        print(json.dumps(_as_dict(sums)))
    elif sums.num_books:
        _draw(sums)
    if is_cut:
        raise SystemExit(130)


def _as_dict(sums: LossByPosition) -> dict[str, object]:
    names = ("from_position", "num_tokens", "loss", "bits_per_byte")
    return {
        "num_books": sums.num_books,
        "num_tokens": sum(sums.num_tokens),
        "loss": sums.loss,
        "bits_per_byte": sums.bits_per_byte,
        "by_position": [dict(zip(names, row, strict=True)) for row in sums.buckets()],
    }


def _draw(sums: LossByPosition) -> None:
    console = Console(highlight=False)
    block = "#" if console.options.ascii_only else "█"
    rows = sums.buckets()
    low, high = min(row[3] for row in rows), max(row[3] for row in rows)
    table = Table(box=None, pad_edge=False)
    for heading in ("from token", "tokens", "nats/token", "bits/byte"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"{low:.3f} to {high:.3f}" if high > low else "", no_wrap=True, overflow="crop")
    for edge, count, nats, bits in rows:
        width = 1 + round((_BAR_WIDTH - 1) * (bits - low) / (high - low)) if high > low else 1
        table.add_row(f"{edge:,}", f"{count:,}", f"{nats:.4f}", f"{bits:.4f}", block * width)
    table.add_row("all", f"{sum(sums.num_tokens):,}", f"{sums.loss:.4f}", f"{sums.bits_per_byte:.4f}")
    console.print(table)
