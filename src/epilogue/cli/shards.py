"""`epilogue shards`: what a folder of shards holds, and whether it still does."""

import json
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from epilogue.cli.settings import in_words
from epilogue.data import Shards

_LENGTHS = (2048, 8192, 65536)


def run_inspect(folder: Path, *, as_json: bool) -> None:
    """Show tokenizer, pipeline, files and the lengths of the books.

    Raises:
        ShardError: the folder is none, or damaged as far as sizes and index show.
    """
    found = _described(Shards(folder))
    if as_json:
        print(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else _in_lines(value))
    Console(highlight=False, markup=False).print(table)


def run_verify(folder: Path, *, as_json: bool) -> None:
    """Read and hash every file.

    Raises:
        ShardError: naming what is damaged.
    """
    shards = Shards(folder)
    with Console(stderr=True).status("reading every file"):
        shards.verify()
    files = shards.manifest.files
    if as_json:
        print(json.dumps({"folder": str(folder), "files": {file.name: file.sha256 for file in files}}))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("SHA-256", no_wrap=True)
    for file in files:
        table.add_row(file.name, in_words(file.num_bytes), f"{file.sha256[:16]}, as it was written")
    Console(highlight=False, markup=False).print(table)


def _described(shards: Shards) -> dict[str, int | float | str | dict[str, int]]:
    manifest, lengths = shards.manifest, sorted(document.num_tokens for document in shards.documents)
    return {
        "books": len(lengths),
        "tokens": shards.num_tokens,
        "bytes_of_text": sum(document.num_bytes for document in shards.documents),
        "bytes_per_token": round(shards.bytes_per_token, 3),
        "shortest_tokens": lengths[0] if lengths else 0,
        "median_tokens": int(median(lengths)) if lengths else 0,
        "longest_tokens": lengths[-1] if lengths else 0,
        "books_of_at_least": {str(n): sum(length >= n for length in lengths) for n in _LENGTHS},
        "dtype": manifest.dtype,
        "pipeline": manifest.pipeline,
        "tokenizer": manifest.tokenizer_fingerprint,
        "file_bytes": {file.name: file.num_bytes for file in manifest.files},
    }


def _in_lines(value: str | dict[str, int]) -> str:
    return value if isinstance(value, str) else "\n".join(f"{name}: {number:,}" for name, number in value.items())
