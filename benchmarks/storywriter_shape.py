"""MPT-7B-StoryWriter's shape with random weights on one GPU: a book read, a story written behind it, attention alone.

    python -m benchmarks.storywriter_shape                              # one CUDA card of 80 GB
    python -m benchmarks.storywriter_shape --shape tiny --device cpu    # the same path in seconds
    python -m benchmarks.storywriter_shape --storage int8 --chunk-tokens 8192 16384 --profile --reading-only

Reads 83,968 tokens. Random weights have no story: how much of the past reach visits stands beside every figure. MFU
counts the arithmetic of the keys that were visited, MBU the bytes of the weights and of those keys; both against
ceilings measured now. Tests of the decode step run first. Ends with one JSON line.
"""

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.kernel_times import kernel_times
from epilogue.engine import Engine, SamplingParams, Sequence, Storage
from epilogue.kernels.attention import Backend, attention
from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import MPT, NAMED_SIZES, MPTConfig, alibi_slopes, page_bytes, read_flops
from epilogue.model.reach import page_norms, plan_reach

STORYWRITER = NAMED_SIZES["mpt-7b-storywriter"]
TINY = replace(STORYWRITER, d_model=64, n_heads=4, n_layers=2, vocab_size=512)
WARM_UP_TOKENS = 8


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """The median of a few, after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def ceilings(device: torch.device) -> dict[str, float]:
    """What this device does at most: a bf16 product and a copy, counting bytes read and written."""
    size, count = (8192, 1 << 32) if device.type == "cuda" else (512, 1 << 24)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    flop_per_s = 2 * size**3 / seconds(lambda: a @ b, device)
    source, target = (torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2))
    return {"flop_per_s": flop_per_s, "bytes_per_s": 2 * count / seconds(lambda: target.copy_(source), device)}


def build(config: MPTConfig, device: torch.device) -> MPT:
    """Random weights in bf16, made where they stay."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = MPT(config)
    finally:
        torch.set_default_dtype(before)
    model.to(device)  # the slopes too
    model.init_weights(seed=0)
    return model.eval()


def write(engine: Engine, sequence: Sequence, num_tokens: int) -> float:
    """Seconds for so many tokens, the first ones not counted: they compile and capture."""
    params = SamplingParams(max_new_tokens=WARM_UP_TOKENS + num_tokens, temperature=0)
    start = 0.0
    for count, _ in enumerate(engine.stream(sequence, params), start=1):
        if count == WARM_UP_TOKENS:
            start = time.perf_counter()
    return time.perf_counter() - start


def measure_writing(engine: Engine, sequence: Sequence, num_tokens: int, ceiling: dict[str, float]) -> dict[str, Any]:
    model, before = engine.model, int(sequence.reads.visited_H.sum())
    token_s = write(engine, sequence, num_tokens) / num_tokens
    keys = (int(sequence.reads.visited_H.sum()) - before) / (WARM_UP_TOKENS + num_tokens)
    key_bytes = page_bytes(model.config, engine.pages.pool.storage) / PAGE_TOKENS
    step_bytes = sum(x.nbytes for x in model.parameters()) + keys * key_bytes
    dense = model.config.n_layers * model.config.n_heads * sequence.num_tokens
    return {
        "tokens_per_s": round(1 / token_s, 2),
        "share_visited": round(keys / dense, 4),
        "mbu": round(step_bytes / token_s / ceiling["bytes_per_s"], 3),
    }


def measure(
    model: MPT,
    storage: Storage,
    ids: list[int],
    ceiling: dict[str, float],
    *,
    num_tokens: int,
    chunk_tokens: int | None,
    repeats: int,
    is_profiled: bool,
) -> dict[str, Any]:
    """The fastest of some readings, and two writings behind it: replayed and step by step; none for no tokens."""
    device, config = model.device, model.config
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    num_pages = None if device.type == "cuda" else 4000
    engine = Engine(model, storage=storage, num_pages=num_pages, chunk_tokens=chunk_tokens)
    synchronize(device)
    engine_s = time.perf_counter() - start
    # Kernels are compiled by another text, of several chunks and a rest.
    start = time.perf_counter()
    engine.close(engine.open_book(ids[: 2 * engine.chunk_tokens + 100][::-1]))
    synchronize(device)
    compile_s = time.perf_counter() - start
    times = []
    for repeat in range(repeats):
        start = time.perf_counter()
        sequence = engine.open_book(ids, room_tokens=4 * (WARM_UP_TOKENS + num_tokens))
        synchronize(device)
        times.append(time.perf_counter() - start)
        if repeat < repeats - 1:
            engine.close(sequence)
    read_s, stats = min(times), engine.stats()
    flops = read_flops(config, len(ids), visited_pairs=int(sequence.reads.visited_H.sum()))
    row = {
        "storage": storage,
        "chunk_tokens": engine.chunk_tokens,
        "num_tokens": len(ids),
        "engine_s": round(engine_s, 2),
        "compile_s": round(compile_s, 2),
        "read_s": round(read_s, 3),
        "all_read_s": [round(x, 3) for x in times],
        "read_tokens_per_s": round(len(ids) / read_s),
        "share_visited": round(stats.share_visited, 4),
        "share_held": round(stats.pages_held * PAGE_TOKENS / (len(ids) * config.n_layers * config.kv_n_heads), 4),
        "mfu": round(flops / read_s / ceiling["flop_per_s"], 3),
    }
    if num_tokens:
        row["write"] = measure_writing(engine, sequence, num_tokens, ceiling)
    if num_tokens and (decoder := engine._stepper.decoder):
        decoder.capture = lambda step: step
        decoder._slots.clear()
        row["write_without_graph"] = measure_writing(engine, sequence, num_tokens, ceiling)
    engine.close(sequence)
    if device.type == "cuda":
        row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    if is_profiled:
        row["late_chunk"] = profile_chunk(engine, ids, behind_tokens=len(ids) // 2)
    return row


def profile_chunk(engine: Engine, ids: list[int], *, behind_tokens: int) -> dict[str, Any]:
    """A chunk behind so many tokens, of two: between them a host may keep the device waiting."""
    sequence = engine.enter(ids)
    while sequence.table.num_tokens < behind_tokens:
        engine.advance(sequence)
    row = kernel_times(lambda: engine.advance(sequence), repeats=2)
    engine.close(sequence)
    return row


def measure_attention(config: MPTConfig, num_tokens: int, device: torch.device, ceiling: float) -> list[dict[str, Any]]:
    """A whole causal read of one layer: dense and with a plan, by every backend there is."""
    heads, head_dim = config.n_heads, config.head_dim
    q, k, v = (torch.randn(1, num_tokens, heads, head_dim, device=device, dtype=torch.bfloat16) for _ in range(3))
    slopes_H, scale = alibi_slopes(heads, config.attn_config.alibi_bias_max).to(device), head_dim**-0.5
    plan = plan_reach(q, k, page_norms(k), slopes_H, scale=scale, epsilon=1e-6, num_keys=num_tokens)
    visited_H, dense = plan.visited()
    share = float(visited_H.sum()) / (heads * dense)
    rows = []
    backends: tuple[Backend, ...] = ("flex", "hopper") if device.type == "cuda" else ("cpu",)
    for backend in backends:
        for name, first_key_HN, pairs in (("dense", None, 1.0), ("plan", plan.first_key_HN, share)):
            row: dict[str, Any] = {"backend": backend, "plan": name, "num_tokens": num_tokens}

            def work(first_key_HN: torch.Tensor | None = first_key_HN, backend: Backend = backend) -> torch.Tensor:
                return attention(q, k, v, slopes_H, scale=scale, first_key_HN=first_key_HN, backend=backend)

            try:
                time_s = seconds(work, device)
                flop_per_s = 4 * head_dim * heads * dense * pairs / time_s
                row |= {"s": round(time_s, 4), "share_visited": round(pairs, 4), "mfu": round(flop_per_s / ceiling, 3)}
            except Exception as error:  # whatever a backend that is not there raises
                row["missing"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("storywriter", "tiny"), default="storywriter")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, help="to read; 83,968 of the large shape, 700 of the tiny one")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--storage", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--chunk-tokens", nargs="+", type=int, default=[None], help="read in chunks of so many")
    parser.add_argument("--repeats", type=int, default=3, help="readings, of which the fastest counts")
    parser.add_argument("--reading-only", action="store_true", help="no writing, and no attention by itself")
    parser.add_argument("--profile", action="store_true", help="of a late chunk, too: its kernels, and the GPU's waits")
    parser.add_argument("--untested", action="store_true", help="do not run the tests first")
    args = parser.parse_args()
    device, is_tiny = torch.device(args.device), args.shape == "tiny"
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: there is no CUDA device; --shape tiny --device cpu runs the same path", file=sys.stderr)
        return
    if not args.untested:
        require_green(
            ["-m", "gpu", "tests/engine/test_gpu.py"] if device.type == "cuda" else ["tests/engine/test_decoder.py"]
        )
    config, num_tokens = (TINY, 700) if is_tiny else (STORYWRITER, 83_968)
    card = machine_card() | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    ceiling = ceilings(device)
    print(card, ceiling, flush=True)
    lengths = (300, 700) if is_tiny else (65_536, 83_968)
    lengths = () if args.reading_only else lengths
    with torch.inference_mode():
        heads = [row for n in lengths for row in measure_attention(config, n, device, ceiling["flop_per_s"])]
    model = build(config, device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (args.tokens or num_tokens,), generator=generator).tolist()
    rows = []
    for storage, chunk_tokens in itertools.product(args.storage, args.chunk_tokens):
        row = measure(
            model, storage, ids, ceiling, num_tokens=0 if args.reading_only else args.new_tokens,
            chunk_tokens=chunk_tokens, repeats=args.repeats, is_profiled=args.profile and device.type == "cuda",
        )  # fmt: skip
        rows.append(row)
        print(rows[-1], flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    finish({"machine": card, "ceiling": ceiling, "attention": heads, "reading": rows})


if __name__ == "__main__":
    main()
