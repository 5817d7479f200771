"""Opening a book that was read before: how long until the first new token, for every storage of keys and values.

    python -m benchmarks.reopen_book --book novel.txt

A state is written by one engine and opened by a new one in the same process, so its file is in the system's cache and
the model is loaded: the time is that of an engine, of finding and verifying the state, filling pages, and one step.
Prints the file's size and the seconds of each part beside those of reading; ends with one JSON line.
"""

import argparse
import time
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from benchmarks.harness import finish, machine_card, require_green
from epilogue.checkpoint import load_checkpoint, load_tokenizer
from epilogue.engine import Engine, Library, SamplingParams, Storage
from epilogue.model import MPT
from epilogue.text import read_book

BUNDLED = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"
PARAMS = SamplingParams(max_new_tokens=1, seed=1, ignore_eos=True)


def measure(model: MPT, ids: list[int], storage: Storage, folder: Path) -> dict[str, Any]:
    library = Library(folder, limit_bytes=2**40)
    start = time.perf_counter()
    engine = Engine(model, storage=storage)
    text = engine.open_book(ids)
    read_s = time.perf_counter() - start
    start = time.perf_counter()
    kept = library.keep(engine, text)
    keep_s = time.perf_counter() - start
    expected = next(engine.stream(text, PARAMS))
    del engine, text
    start = time.perf_counter()
    engine = Engine(model, storage=storage)
    engine_s = time.perf_counter() - start
    opened = library.open(engine, ids)
    assert opened is not None
    open_s = time.perf_counter() - start - engine_s
    assert next(engine.stream(opened.sequence, PARAMS)) == expected
    return {
        "storage": storage,
        "num_tokens": len(ids),
        "read_s": round(read_s, 2),
        "keep_s": round(keep_s, 3),
        "file_bytes": kept.num_bytes,
        "engine_s": round(engine_s, 3),
        "open_s": round(open_s, 3),
        "first_token_s": round(time.perf_counter() - start, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", default=BUNDLED.parent / "a-life-in-being.txt")
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--tokens", type=int, help="read no more than so many")
    args = parser.parse_args()
    require_green(["tests/engine/test_book_state.py"])
    checkpoint = load_checkpoint(args.model, dtype=torch.float32)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    ids = tokenizer.encode(read_book(args.book).text)[: args.tokens]
    card = machine_card()
    print(card)
    rows = []
    for storage in get_args(Storage):
        with TemporaryDirectory() as folder:
            row = measure(checkpoint.model, ids, storage, Path(folder))
        rows.append(row)
        print(
            f"{storage:9} read {row['read_s']:8.1f} s"
            f"  kept {row['file_bytes'] / 2**20:7.1f} MiB in {row['keep_s']:5.2f} s"
            f"  engine {row['engine_s']:5.2f} s  opened {row['open_s']:5.2f} s"
            f"  first token {row['first_token_s']:5.2f} s",
            flush=True,
        )
    finish({"machine": card, "rows": rows})


if __name__ == "__main__":
    main()
