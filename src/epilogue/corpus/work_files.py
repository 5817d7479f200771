"""What lies between the stages of a selection: for every task its records, its texts and its sketches."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from epilogue.corpus.books import SourceBook
from epilogue.corpus.editions import Edition
from epilogue.corpus.json_lines import JsonLinesWriter, partial_path, read_json_lines
from epilogue.corpus.shingles import Hashes, sketch


def texts_file(work: Path, task: int) -> Path:
    """The texts that a task has kept."""
    return work / "texts" / f"{task:05d}.jsonl.zst"


def repeats_file(work: Path, task: int) -> Path:
    """Which of them the comparison found superfluous, by their place among them."""
    return work / "repeats" / f"{task:05d}.json"


class JudgedBooks:
    """Writes a task's files; each stands at its place once it is whole. Memory: the task's sketches.

    Used as a context manager.
    """

    def __init__(self, work: Path, task: int) -> None:
        self._texts = JsonLinesWriter(texts_file(work, task))
        self._records = JsonLinesWriter(_records_file(work, task))
        self._sketches_file = _sketches_file(work, task)
        self._sketches: list[Hashes] = []
        self._files = ExitStack()

    def __enter__(self) -> "JudgedBooks":
        self._files.enter_context(self._texts)
        self._files.enter_context(self._records)
        return self

    def add(self, book: SourceBook) -> None:
        """Write a book: its record always, text and sketch if it is kept."""
        record = {name: getattr(book, name) for name in _RECORDED}
        if not book.dropped:
            hashes = sketch(book.words)
            self._sketches.append(hashes)
            record |= {
                "chars": len(book.text),
                "text_hash": xxhash.xxh3_128_hexdigest(book.words.tobytes()),
                "sketch_hashes": len(hashes),
            }
            self._texts.write({name: getattr(book, name) for name in _PUBLISHED} | book.measures)
        self._records.write(record | {"text": "-"})

    def __exit__(self, *raised: Any) -> None:
        self._sketches_file.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(self._sketches_file)
        with partial.open("wb") as out:
            np.save(out, np.concatenate([np.empty(0, np.uint64), *self._sketches]))
        partial.replace(self._sketches_file)
        self._files.__exit__(*raised)


_RECORDED = ("id", "source", "title", "author", "year", "gutenberg_id", "measures", "dropped", "why", "excerpt")
_PUBLISHED = ("id", "title", "author", "year", "gutenberg_id", "source", "text")


def read_records(work: Path, task: int) -> Iterator[dict[str, Any]]:
    """A task's records in the order of its books."""
    for _, record in read_json_lines(_records_file(work, task)):
        yield record


def read_editions(work: Path, task: int) -> Iterator[Edition]:
    """What the comparison needs of the books that a task has kept, in order."""
    sketches, start = np.load(_sketches_file(work, task)), 0
    for record in read_records(work, task):
        if not record["dropped"]:
            end = start + record["sketch_hashes"]
            yield Edition(
                text_hash=record["text_hash"],
                sketch=sketches[start:end],
                noise=record["measures"]["noise_share"],
                num_chars=record["chars"],
            )
            start = end


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file under another name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.replace(path)


def _records_file(work: Path, task: int) -> Path:
    return work / "records" / f"{task:05d}.jsonl.zst"


def _sketches_file(work: Path, task: int) -> Path:
    return work / "sketches" / f"{task:05d}.npy"
