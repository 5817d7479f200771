"""Reading a book and writing behind it: dense against reach, and every storage of keys and values, in one run.

    python -m benchmarks.read_book --book novel.txt                     # reach, all storages
    python -m benchmarks.read_book --book novel.txt --dense             # and epsilon 0, minutes more

Prints tokens per second, the share of keys visited, bytes held, seconds per new token, and bits per byte of the book
itself as the model reads it; ends with one JSON line.
"""

import argparse
import math
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.harness import finish, machine_card, require_green
from epilogue.checkpoint import load_checkpoint, load_tokenizer
from epilogue.engine import Engine, Storage
from epilogue.evals import measure_speed
from epilogue.model import MPT
from epilogue.text import Tokenizer, read_book

BUNDLED = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"
NEW_TOKENS = 64


def measure(model: MPT, tokenizer: Tokenizer, ids: list[int], storage: Storage, epsilon: float) -> dict[str, Any]:
    engine = Engine(model, storage=storage, epsilon=epsilon, lookup=False)
    (row,) = measure_speed(engine, ids, [len(ids)], new_tokens=NEW_TOKENS)
    # A second reading; the dense one would take minutes to say what float32 with reach says.
    nats = -float(engine.score(ids).double().sum()) if epsilon else math.nan
    num_bytes = sum(len(tokenizer.token_bytes(i)) for i in ids[1:])
    return {
        "storage": storage,
        "epsilon": epsilon,
        "num_tokens": len(ids),
        "read_s": round(row.read_s, 2),
        "read_tokens_per_s": round(row.tokens_per_s),
        "share_visited": round(row.share_visited, 5),
        "share_visited_by_head": [round(share, 5) for share in row.shares_visited],
        "share_held_by_kv_head": [round(share, 5) for share in row.shares_held],
        "omitted_mass": row.omitted_mass,
        "bytes_held": row.bytes_held,
        "bytes_dense_bf16": row.bytes_dense_bf16,
        "s_per_new_token": round(row.token_s, 5),
        "bits_per_byte": round(nats / math.log(2) / num_bytes, 6) if epsilon else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", default=BUNDLED.parent / "a-life-in-being.txt")
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--tokens", type=int, help="read no more than so many")
    parser.add_argument("--dense", action="store_true", help="measure epsilon 0 too")
    args = parser.parse_args()
    require_green(["tests/engine/test_engine.py", "tests/model/test_kv_cache.py"])
    checkpoint = load_checkpoint(args.model, dtype=torch.float32)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    ids = tokenizer.encode(read_book(args.book).text)[: args.tokens]
    card = machine_card()
    print(card)
    runs: list[tuple[Storage, float]] = [(storage, 1e-6) for storage in get_args(Storage)]
    rows = []
    for storage, epsilon in runs + ([("float32", 0.0)] if args.dense else []):
        row = measure(checkpoint.model, tokenizer, ids, storage, epsilon)
        rows.append(row)
        print(
            f"{row['storage']:9} epsilon {row['epsilon']:<6}"
            f" read {row['read_s']:8.1f} s {row['read_tokens_per_s']:6} tok/s"
            f"  visited {row['share_visited']:7.2%}  held {row['bytes_held'] / 2**20:7.1f} MiB"
            f"  {row['s_per_new_token'] * 1000:6.1f} ms/token  {row['bits_per_byte']} bits/byte",
            flush=True,
        )
    finish({"machine": card, "rows": rows})


if __name__ == "__main__":
    main()
