"""`epilogue evaluate`: bits per byte and loss by position, as a table one can look at."""

import json
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_tokenizer
from epilogue.cli.settings import open_model
from epilogue.data import iterate_documents
from epilogue.evals import LossByPosition, loss_by_position

_BAR_WIDTH = 40


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
    """Evaluate one model on held-out books; the running figure goes to stderr, the result to stdout."""
    checkpoint = open_model(model, device=device, dtype=dtype)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    documents = islice(iterate_documents(texts), max_books)
    console = Console(stderr=True)
    with console.status("reading") as status:
        sums = loss_by_position(
            checkpoint.model,
            tokenizer,
            (document.text for document in documents),
            context_tokens=context_tokens,
            on_book=lambda s: status.update(f"{s.num_books} books, {s.bits_per_byte:.4f} bits/byte so far"),
        )
    if as_json:
        print(json.dumps(_as_dict(sums)))
    else:
        _draw(sums)


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
    rows = sums.buckets()
    low, high = min(row[3] for row in rows), max(row[3] for row in rows)
    table = Table("from token", "tokens", "nats/token", "bits/byte", "", box=None)
    for edge, count, nats, bits in rows:
        width = 1 + round((_BAR_WIDTH - 1) * (bits - low) / (high - low)) if high > low else 1
        table.add_row(f"{edge:,}", f"{count:,}", f"{nats:.4f}", f"{bits:.4f}", "█" * width)
    table.add_row("all", f"{sum(sums.num_tokens):,}", f"{sums.loss:.4f}", f"{sums.bits_per_byte:.4f}")
    Console().print(table)
