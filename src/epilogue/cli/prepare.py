"""`epilogue prepare`: books to shards."""

from pathlib import Path

from rich.console import Console

from epilogue.cli.progress import Watch
from epilogue.data import prepare_shards
from epilogue.errors import ShardError
from epilogue.text import Tokenizer


def run_prepare(sources: list[Path], out: Path, *, tokenizer: Path | None, vocab_size: int, num_workers: int) -> None:
    """Write shards, with the books and tokens so far on stderr.

    Raises:
        ShardError: ``out`` is there already; said before anything is read.
        EpilogueError: a source or the tokenizer cannot be read.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    if out.exists():
        raise ShardError(f"{out} exists already; remove it or choose another place")
    given = None if tokenizer is None else Tokenizer.from_file(tokenizer)
    if given is None:
        console.print("learning a vocabulary from the first books, then cutting all of them into tokens", style="dim")
    num_books, num_tokens = 0, 0
    with Watch(console, "preparing", unit="books") as watch:

        def on_book(title: str, added: int) -> None:
            nonlocal num_books, num_tokens
            num_books, num_tokens = num_books + 1, num_tokens + added
            watch.update(num_books, f"{num_tokens:,} tokens, {title[:40]}")

        try:
            shards = prepare_shards(
                sources, out, tokenizer=given, vocab_size=vocab_size, num_workers=num_workers, on_book=on_book
            )
        except KeyboardInterrupt:
            console.print(f"stopped after {_books(num_books)}; the same command goes on from there")
            raise SystemExit(130) from None
    console.print(f"{_books(len(shards.documents))}, {shards.num_tokens:,} tokens, the end of each book counted")
    print(out)


def _books(number: int) -> str:
    return f"{number:,} book{'' if number == 1 else 's'}"
