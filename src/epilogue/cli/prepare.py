"""`epilogue prepare`: books to shards."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from epilogue.data import prepare_shards
from epilogue.text import Tokenizer


def run_prepare(sources: list[Path], out: Path, *, tokenizer: Path | None, vocab_size: int) -> None:
    """Write shards, with a line of progress on stderr."""
    console = Console(stderr=True)
    given = None if tokenizer is None else Tokenizer.from_file(tokenizer)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("learning a vocabulary" if given is None else "reading", total=None, tokens=0)
        total = 0

        def on_book(title: str, num_tokens: int) -> None:
            nonlocal total
            total += num_tokens
            progress.update(task, description=title[:48], tokens=total)

        shards = prepare_shards(sources, out, tokenizer=given, vocab_size=vocab_size, on_book=on_book)
    console.print(f"{len(shards.documents):,} books, {shards.num_tokens:,} tokens in {out}")
