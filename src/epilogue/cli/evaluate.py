"""`epilogue evaluate`: bits per byte and loss by position, as a table one can look at."""

import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_tokenizer
from epilogue.cli.progress import Watch
from epilogue.cli.settings import check_epsilon, open_model, parse_lengths
from epilogue.data import iterate_documents
from epilogue.evals import ContextAblation, LossByPosition, context_ablation, loss_by_position

_BAR_WIDTH = 28


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command line of `epilogue evaluate`."""

    texts: list[Path]
    model: str | None
    context_tokens: int
    contexts: str | None
    num_targets: int
    max_books: int | None
    device: str
    dtype: str
    epsilon: float
    as_json: bool


def run_evaluate(options: EvaluateOptions) -> None:
    """Evaluate one model on held-out books; the running figure goes to stderr, the result to stdout.

    Ctrl-C ends with the result so far, and exit code 130.

    Raises:
        EpilogueError: a book or the model cannot be read, or the contexts do not go.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    contexts = None if options.contexts is None else parse_lengths(options.contexts, option="--contexts")
    epsilon = check_epsilon(options.epsilon)
    with console.status("loading the model"):
        checkpoint = open_model(options.model, device=options.device, dtype=options.dtype)
        tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    checkpoint.model.set_epsilon(epsilon)
    sums: LossByPosition | ContextAblation = LossByPosition()
    with Watch(console, "evaluating", unit="books", total=options.max_books) as watch:

        def on_book(so_far: LossByPosition | ContextAblation) -> None:
            nonlocal sums
            sums = so_far
            watch.update(sums.num_books, _so_far(sums))

        books = (document.text for document in islice(iterate_documents(options.texts), options.max_books))
        is_cut = False
        try:
            if contexts is None:
                length = options.context_tokens
                loss_by_position(checkpoint.model, tokenizer, books, context_tokens=length, on_book=on_book)
            else:
                targets = options.num_targets
                context_ablation(
                    checkpoint.model, tokenizer, books, contexts=contexts, num_targets=targets, on_book=on_book
                )
        except KeyboardInterrupt:
            is_cut = True
    if is_cut:
        console.print(f"stopped after {sums.num_books:,} book" + ("" if sums.num_books == 1 else "s"))
    if sums.num_books:
        _show(sums, as_json=options.as_json)
    if is_cut:
        raise SystemExit(130)


def _so_far(sums: LossByPosition | ContextAblation) -> str:
    if isinstance(sums, LossByPosition):
        return f"{sums.bits_per_byte:.4f} bits/byte so far"
    last = sums.rows()[-1]
    return f"{last.change:+.4f} bits/byte with {last.context_tokens:,} tokens so far"


def _show(sums: LossByPosition | ContextAblation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_dict(sums) if isinstance(sums, LossByPosition) else _contexts_as_dict(sums)))
    elif isinstance(sums, LossByPosition):
        _draw(sums)
    else:
        _draw_contexts(sums)


def _contexts_as_dict(sums: ContextAblation) -> dict[str, object]:
    rows = [asdict(row) | {"change_error": None if sums.num_books == 1 else row.change_error} for row in sums.rows()]
    return {"num_books": sums.num_books, "targets_per_book": sums.num_targets, "by_context": rows}


def _draw_contexts(sums: ContextAblation) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("window", "nats/token", "bits/byte", "change", "95%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sums.rows():
        error = "" if sums.num_books == 1 else f"± {row.change_error:.4f}"
        table.add_row(
            f"{row.context_tokens:,}", f"{row.loss:.4f}", f"{row.bits_per_byte:.4f}", f"{row.change:+.4f}", error
        )
    Console(highlight=False).print(table)


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
