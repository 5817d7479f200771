"""Reading and writing against llama.cpp: the same weights, the same cores, one run.

    python -m benchmarks.peers.speed --book gatsby.txt
    python -m benchmarks.peers.speed --quick                 # does it work?

llama.cpp reads as far as --llama-tokens, batch by batch, and writes at some depths on the way. Its cost a token is
fitted as a + b * depth, and what it would take further back is that line and said to be; ours is measured whole.
llama.cpp has f16 weights, flash attention and f16 or q4_0 keys and values; ours has fp32 weights.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.peers.llama import LlamaReader
from benchmarks.peers.models import BUNDLED, bundled, storywriter_like
from epilogue.checkpoint import load_config, load_tokenizer
from epilogue.engine import Engine, SamplingParams, Storage
from epilogue.model import MPT
from epilogue.text import read_book

DEPTHS = (512, 2048, 8192, 16384, 32768)
NEW_TOKENS = 32
STORY = BUNDLED.parent / "a-life-in-being.txt"
STORAGES: tuple[Storage, ...] = ("bfloat16", "int8")


def measure_llama(gguf: Path, ids: list[int], kv_type: str, threads: int, whole: int) -> dict[str, Any]:
    reader = LlamaReader(gguf, room_tokens=len(ids) + NEW_TOKENS + 512, threads=threads, kv_type=kv_type)
    batches: list[float] = []
    read_s, token_s = {}, {}
    for depth in [depth for depth in DEPTHS if depth <= len(ids)]:
        batches += reader.read(ids[reader.num_tokens : depth])
        read_s[depth] = sum(batches)
        token_s[depth] = statistics.median(reader.write(NEW_TOKENS)[1:])
    reader.close()
    middles = np.arange(len(batches)) * 512 + 256
    slope, start = np.polyfit(middles, np.array(batches) / 512, 1)
    token_slope, token_start = np.polyfit(list(token_s), list(token_s.values()), 1)
    return {
        "program": "llama.cpp",
        "kv": kv_type,
        "read_s": read_s,
        "token_s": token_s,
        "fitted_read_s": {n: start * n + slope * n * n / 2 for n in (*read_s, whole)},
        "fitted_token_s": {n: token_start + token_slope * n for n in (*token_s, whole)},
    }


def measure_ours(model: MPT, ids: list[int], storage: Storage, depths: list[int]) -> dict[str, Any]:
    engine = Engine(model, storage=storage, lookup=False)
    read_s, token_s = {}, {}
    params = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    for depth in depths:
        begun = time.perf_counter()
        sequence = engine.open_book(ids[:depth], room_tokens=NEW_TOKENS)
        read_s[depth] = time.perf_counter() - begun
        stamps = [time.perf_counter() for _ in engine.stream(sequence, params, eos_id=0)]
        token_s[depth] = float(np.median(np.diff(stamps)))
        stats = engine.stats()
        engine.close(sequence)
    return {
        "program": "epilogue", "kv": storage, "read_s": read_s, "token_s": token_s,
        "share_visited": stats.share_visited, "omitted_mass": stats.omitted_mass,
    }  # fmt: skip


def compare(
    name: str, made: tuple[MPT, Path], ids: list[int], args: argparse.Namespace, storages: tuple[Storage, ...]
) -> dict[str, Any]:
    (model, gguf), whole = made, len(ids)
    near = [depth for depth in DEPTHS if depth <= min(args.llama_tokens, whole)]
    rows = [measure_llama(gguf, ids[: near[-1]], "f16", args.threads, whole)]
    rows.append(measure_ours(model, ids, "float32", [*near, whole]))
    # Packed keys take llama.cpp several times as long: two depths must do for the line.
    rows.append(measure_llama(gguf, ids[: near[1]], "q4_0", args.threads, whole))
    rows += [measure_ours(model, ids, storage, [near[0], whole]) for storage in storages]
    print(f"\n{name}: {model.config.n_layers} layers, bias max {model.config.attn_config.alibi_bias_max:g}")
    for row in rows:
        print(f"  {row['program']:9} {row['kv']:8}  read   {_line(row, 'read_s', whole, '{:,.1f} s'.format)}")
        print(f"  {'':18}  token  {_line(row, 'token_s', whole, lambda s: f'{s * 1000:,.1f} ms')}", flush=True)
    theirs, ours = rows[0], rows[1]
    ratios = {
        "read": theirs["fitted_read_s"][whole] / ours["read_s"][whole],
        "token": theirs["fitted_token_s"][whole] / ours["token_s"][whole],
        f"token behind {near[0]}": theirs["token_s"][near[0]] / ours["token_s"][near[0]],
    }
    print("  times as fast as llama.cpp with f16 keys:", {key: round(float(ratio), 2) for key, ratio in ratios.items()})
    return {"model": name, "num_tokens": whole, "rows": rows, "ratios": ratios}


def _line(row: dict[str, Any], what: str, whole: int, in_words: Callable[[float], str]) -> str:
    """Depths with their figures; what was not measured has a tilde."""
    figures = {n: in_words(s) for n, s in row[what].items()}
    if whole not in row[what]:
        figures[whole] = f"~{in_words(row[f'fitted_{what}'][whole])}"
    return "   ".join(f"{n:,}: {figure}" for n, figure in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--book", default=STORY)
    parser.add_argument("--tokens", type=int, default=67_873)
    parser.add_argument("--llama-tokens", type=int, default=16_384, help="how far llama.cpp reads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="short texts, no tests first: only to see that it runs")
    args = parser.parse_args()
    if min(args.tokens, args.llama_tokens) < DEPTHS[1]:
        parser.error(f"a line needs two depths: read at least {DEPTHS[1]:,} tokens")
    if args.quick:
        args.tokens, args.llama_tokens = min(args.tokens, 5000), min(args.llama_tokens, 2048)
    else:
        require_green(["tests/checkpoint/test_gguf.py", "tests/engine/test_engine.py"])
    torch.set_num_threads(args.threads)
    card = machine_card()
    print(card)
    text = read_book(args.book).text
    ids = load_tokenizer(BUNDLED, load_config(BUNDLED)).encode(text)
    ids = (ids * -(-args.tokens // len(ids)))[: args.tokens]  # a short story is read over and over
    drawn = torch.randint(8192, (args.tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            compare("the bundled model", bundled(Path(folder)), ids, args, STORAGES),
            compare(
                "random, StoryWriter's slopes and clamp", storywriter_like(Path(folder)), drawn, args, STORAGES[1:]
            ),
        ]
    finish({"machine": card, "threads": args.threads, "models": results})


if __name__ == "__main__":
    main()
