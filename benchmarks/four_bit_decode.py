"""MPT-7B-StoryWriter's shape with random 4-bit weights on one GPU: products of one row, a book read, a story written.

    python -m benchmarks.four_bit_decode                                # one CUDA card
    python -m benchmarks.four_bit_decode --limit-gib 11 --storage int4 --chunk-tokens 1024 --no-bookmarks --no-products
    python -m benchmarks.four_bit_decode --shape tiny --device cpu      # the same path in seconds

Products: every launch of the row kernel against PyTorch's product of bf16 weights, in a graph over more weights than
the cache holds; the fastest of each shape is what then writes. The story: 83,968 tokens are read, and tokens written by
the engine. Memory is what PyTorch asked the card for; ``--limit-gib`` lets it have no more, as a smaller card would.
Ends with one JSON line.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.storywriter_shape import STORYWRITER, TINY, WARM_UP_TOKENS, ceilings, seconds, synchronize, write
from epilogue.engine import Engine, SamplingParams
from epilogue.errors import CapacityError
from epilogue.kernels.quant_linear import QuantWeight, num_groups, quant_linear
from epilogue.model import MPT, MPTConfig, Quantization, page_bytes
from epilogue.model.linear import QuantLinear

CACHE_BYTES = 200 * 10**6
"""More weights than stay in a cache from one pass over them to the next."""
LAUNCHES = {
    4096: [(8, 1, 4), (8, 2, 4), (8, 4, 4), (16, 1, 4), (16, 2, 4), (4, 4, 4), (8, 2, 8)],
    16384: [(4, 1, 16), (4, 2, 16), (8, 1, 16), (2, 4, 8), (4, 1, 8), (4, 2, 8)],
}
"""By inputs: outputs of a tile, tiles of a program, warps."""


def random_weight(outputs: int, inputs: int, *, bits: int, group_size: int, std: float, device: torch.device) -> Any:
    """Uniform codes whose numbers have this deviation."""
    group = inputs if group_size == -1 else min(group_size, inputs)
    shape = outputs, num_groups(inputs, group)
    codes_OI = torch.empty(outputs, inputs * bits // 8, dtype=torch.uint8, device=device).random_(0, 256)
    scales_OG = torch.full(shape, std * 12**0.5 / 2**bits, dtype=torch.float16, device=device)
    zeros_OG = torch.full(shape, 2 ** (bits - 1), dtype=torch.int16, device=device)
    return QuantWeight(bits, group, codes_OI, scales_OG, zeros_OG)


def build(config: MPTConfig, device: torch.device) -> MPT:
    """Random codes, and what is not quantised in bf16, made where it stays."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = MPT(config)
    finally:
        torch.set_default_dtype(before)
    model.to(device)
    model.init_weights(seed=0)
    kind = config.quantization
    assert kind is not None
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            std = 0.02 / (2 * config.n_layers) ** 0.5 if name.endswith(("out_proj", "down_proj")) else 0.02
            module.quant_weight = random_weight(
                module.out_features, module.in_features,
                bits=kind.bits, group_size=kind.group_size or -1, std=std, device=device,
            )  # fmt: skip
    return model.eval()


def graph_seconds(calls: list[Callable[[], Any]], repeats: int = 20) -> float:
    """Of one call, the least of a few replays of all."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    least = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) / 1000)
    return least / len(calls)


def time_launch(launch: Any, x_RI: Tensor, weights: list[QuantWeight], truth: Tensor) -> float:
    """Seconds of a product; infinite where it cannot be, or is not that of the first weight."""
    from epilogue.kernels.quant_linear.row import quant_linear_row

    multiply = partial(quant_linear_row, x_RI, launch=launch)
    try:
        off = float((multiply(weights[0]).double() - truth).abs().max() / truth.abs().max())
        if not off <= 2**-7.9:
            raise ArithmeticError(f"the product is off by {off}")
        return graph_seconds([partial(multiply, weight) for weight in weights])
    except Exception as error:  # whatever a launch that does not fit raises
        print(f"{len(truth[0])} outputs, {label(launch)}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return float("inf")


def measure_product(name: str, outputs: int, inputs: int, args: argparse.Namespace) -> dict[str, Any]:
    """One layer's shape: all launches of the row kernel, the kernel for more rows, and PyTorch on bf16 weights."""
    from epilogue.kernels.quant_linear.row import Launch  # Triton: only where there is a GPU

    device = torch.device(args.device)
    x_RI = torch.randn(1, inputs, device=device, dtype=torch.bfloat16)
    make = partial(
        random_weight, outputs, inputs, bits=args.bits, group_size=args.group_size, std=0.02, device=device
    )  # fmt: skip
    one = make()
    num_bytes = one.codes_OI.nbytes + one.scales_OG.nbytes + one.zeros_OG.nbytes
    weights = [one, *(make() for _ in range(CACHE_BYTES // num_bytes))]
    dense = [torch.randn(outputs, inputs, device=device, dtype=x_RI.dtype) for _ in range(1 + len(weights) // 4)]
    truth = quant_linear(x_RI.double(), one, backend="reference")
    row: dict[str, Any] = {"layer": name, "outputs": outputs, "inputs": inputs, "bytes": num_bytes}
    launches = [Launch(*sizes) for sizes in LAUNCHES[inputs]]
    times = {launch: time_launch(launch, x_RI, weights, truth) for launch in launches}
    fastest = sorted(times, key=lambda launch: times[launch])[:2]
    for launch in (replace(launch, is_early=True) for launch in fastest):
        times[launch] = time_launch(launch, x_RI, weights, truth)
    row |= {label(launch): time_s for launch, time_s in times.items()}
    row["packed"] = graph_seconds([partial(quant_linear, x_RI, weight, backend="packed") for weight in weights], 5)
    row["bf16"] = graph_seconds([partial(F.linear, x_RI, weight) for weight in dense])
    tell_product(row, dense[0].nbytes)
    return row


def measure_products(config: MPTConfig, args: argparse.Namespace) -> list[dict[str, Any]]:
    width, ffn = config.d_model, config.ffn_width
    shapes = {"Wqkv": (config.qkv_width, width), "out_proj": (width, width), "up_proj": (ffn, width)}
    shapes["down_proj"] = (width, ffn)
    return [measure_product(name, *shape, args) for name, shape in shapes.items()]


def tell_product(row: dict[str, Any], dense_bytes: int) -> None:
    times = {name: x for name, x in row.items() if isinstance(x, float)}
    print(f"{row['layer']} {row['outputs']} x {row['inputs']}, {row['bytes'] / 1e6:.1f} MB:", flush=True)
    for name, time_s in sorted(times.items(), key=lambda item: item[1]):
        size = dense_bytes if name == "bf16" else row["bytes"]
        print(f"    {name:>12} {time_s * 1e6:8.2f} us {size / time_s / 1e9:8.0f} GB/s", flush=True)


def label(launch: Any) -> str:
    """Outputs of a tile x tiles / warps."""
    return f"{launch.block_outputs}x{launch.tiles}/{launch.num_warps}{' early' if launch.is_early else ''}"


def use_fastest(products: list[dict[str, Any]]) -> dict[str, str]:
    """Let the model's layers be launched as was fastest, of those that do not begin early."""
    from epilogue.kernels.quant_linear import row as row_module

    chosen = {}
    for row in products:
        launches = [row_module.Launch(*sizes) for sizes in LAUNCHES[row["inputs"]]]
        known = [launch for launch in launches if label(launch) in row]
        chosen[row["outputs"], row["inputs"]] = min(known, key=lambda launch: row[label(launch)])
    before = row_module.launch_for

    def launch_for(rows: int, outputs: int, inputs: int, bits: int) -> Any:
        return chosen.get((outputs, inputs)) or before(rows, outputs, inputs, bits)

    row_module.launch_for = launch_for
    return {f"{outputs}x{inputs}": label(launch) for (outputs, inputs), launch in chosen.items()}


def token_seconds(engine: Engine, sequence: Any, num_tokens: int) -> list[float]:
    """Of every token but the first ones, which compile and capture."""
    params = SamplingParams(max_new_tokens=WARM_UP_TOKENS + num_tokens, temperature=0)
    ends = [time.perf_counter() for _ in engine.stream(sequence, params)]
    return [end - start for start, end in pairwise(ends[WARM_UP_TOKENS - 1 :])]


def replay_seconds(engine: Engine) -> float:
    """Of a token's graph alone: what is left of a token is the host's."""
    decoder = engine._stepper.decoder
    assert decoder is not None
    slots = next(reversed(decoder._slots.values()))
    assert slots.replay is not None
    return seconds(slots.replay, engine.model.device, repeats=15)


def early_seconds(engine: Engine, sequence: Any) -> float:
    """``replay_seconds`` when every product of one row begins early."""
    from epilogue.kernels.quant_linear import row as row_module

    def launch_for(*sizes: int) -> Any:
        return replace(before(*sizes), is_early=True)

    before, row_module.launch_for = row_module.launch_for, launch_for
    try:
        assert engine._stepper.decoder is not None
        engine._stepper.decoder._slots.clear()
        write(engine, sequence, 1)
        return replay_seconds(engine)
    finally:
        row_module.launch_for = before


def profile_step(engine: Engine, sequence: Any, num_tokens: int) -> list[dict[str, Any]]:
    """Microseconds a token of every kernel while some tokens are written, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        write(engine, sequence, num_tokens - WARM_UP_TOKENS)
    events = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    table = [
        {"kernel": e.key[:90], "us": round(e.self_device_time_total / num_tokens, 1), "calls": e.count / num_tokens}
        for e in sorted(events, key=lambda e: -e.self_device_time_total)
    ]
    print(f"kernels of a token: {sum(row['us'] for row in table):.0f} us in {sum(r['calls'] for r in table):.0f} calls")
    for row in table[:24]:
        print(f"    {row['us']:8.1f} us {row['calls']:6.1f} x  {row['kernel']}", flush=True)
    return table[:40]


def memory(engine: Engine, least_free: int) -> dict[str, float]:
    """GB: the most that was allocated and reserved, and what would do with a pool of the pages that were in use."""
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    spare = least_free * page_bytes(engine.model.config, engine.pages.pool.storage)
    of_model = sum(x.nbytes for x in (*engine.model.parameters(), *engine.model.buffers()))
    return {
        "weights_gb": of_model / 1e9,
        "pages_gb": engine.stats().bytes_held / 1e9,
        "peak_allocated_gb": allocated / 1e9,
        "peak_reserved_gb": reserved / 1e9,
        "peak_without_spare_pages_gb": (allocated - spare) / 1e9,
    }


def measure_story(model: MPT, args: argparse.Namespace, ids: list[int], ceiling: dict[str, float]) -> dict[str, Any]:
    """A book read, and so many tokens written behind it."""
    device, on_gpu = model.device, model.device.type == "cuda"
    options: dict[str, Any] = {"storage": args.storage, "chunk_tokens": args.chunk_tokens}
    if args.no_bookmarks:
        options |= {"spacings": (), "undo_tokens": 0}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        most = int(args.limit_gib * 2**30) if args.limit_gib else torch.cuda.mem_get_info()[0]
        options["available_bytes"] = lambda _: most - torch.cuda.memory_allocated()
    else:
        options["num_pages"] = 4000
    engine = Engine(model, **options)
    engine.close(engine.open_book(ids[: 2 * engine.chunk_tokens + 100][::-1]))  # compiles kernels
    free: list[int] = []
    synchronize(device)
    start = time.perf_counter()
    sequence = engine.open_book(ids, room_tokens=512, on_progress=lambda *_: free.append(engine.pages.num_free))
    synchronize(device)
    row: dict[str, Any] = {"storage": args.storage, "tokens": len(ids), "read_s": time.perf_counter() - start}
    # A chunk's pages are there before older ones go.
    chunk_pages = -(-engine.chunk_tokens // 128) * model.config.n_layers * model.config.kv_n_heads
    places = model.config.n_layers * model.config.n_heads * len(ids)
    before = int(sequence.reads.visited_H.sum())
    times = token_seconds(engine, sequence, args.new_tokens)
    token_s = mean(times)
    keys = (int(sequence.reads.visited_H.sum()) - before) / (WARM_UP_TOKENS + args.new_tokens)
    key_bytes = page_bytes(model.config, args.storage) / 128
    step_bytes = sum(x.nbytes for x in (*model.parameters(), *model.buffers())) + keys * key_bytes
    row |= {
        "tokens_per_s": 1 / token_s,
        "token_ms": {"mean": token_s * 1e3, "median": median(times) * 1e3, "most": max(times) * 1e3},
        "share_visited": keys / places,
        "share_held": engine.stats().pages_held * 128 / places,
        "mbu": step_bytes / token_s / ceiling["bytes_per_s"],
    }
    if on_gpu:
        row["graph_ms"] = replay_seconds(engine) * 1e3
        row |= memory(engine, max(0, min(free) - chunk_pages))
    for name, x in row.items():
        print(f"    {name} {round(x, 3) if isinstance(x, float) else x}", flush=True)
    if on_gpu:
        row["kernels"] = profile_step(engine, sequence, 2 * WARM_UP_TOKENS)
        row["graph_early_ms"] = early_seconds(engine, sequence) * 1e3
        print(f"    graph_early_ms {row['graph_early_ms']:.3f}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("storywriter", "tiny"), default="storywriter")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--tokens", type=int, help="to read; 83,968 of the large shape, 700 of the tiny one")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--storage", choices=("bfloat16", "int8", "int4"), default="int8")
    parser.add_argument("--chunk-tokens", type=int)
    parser.add_argument("--no-bookmarks", action="store_true", help="keep only what the text's end needs")
    parser.add_argument("--limit-gib", type=float, help="memory that PyTorch may take")
    parser.add_argument("--no-products", action="store_true", help="the story alone, launched as the table says")
    parser.add_argument("--untested", action="store_true", help="do not run the kernel's tests first")
    args = parser.parse_args()
    device, is_tiny = torch.device(args.device), args.shape == "tiny"
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("not measured: there is no CUDA device; --shape tiny --device cpu runs the same path", file=sys.stderr)
        return
    if not args.untested:
        require_green(["-m", "gpu" if on_gpu else "not gpu", "tests/kernels/quant_linear/test_packed.py"])
    if on_gpu and args.limit_gib:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.limit_gib * 2**30 / total)
    card = machine_card() | {"device": torch.cuda.get_device_name(device) if on_gpu else "cpu"}
    ceiling = {"bytes_per_s": 4.27e12} if args.limit_gib else ceilings(device)  # a copy to measure takes 8 GB
    print(card, ceiling, flush=True)
    kind = Quantization(bits=args.bits, group_size=args.group_size)
    config = replace(TINY if is_tiny else STORYWRITER, quantization=kind)
    results: dict[str, Any] = {"machine": card, "ceiling": ceiling, "options": vars(args)}
    with torch.inference_mode():
        if on_gpu and not args.no_products:
            results["products"] = measure_products(config, args)
            results["launches"] = use_fastest(results["products"])
            print(results["launches"], flush=True)
            torch.cuda.empty_cache()
    start = time.perf_counter()
    model = build(config, device)
    synchronize(device)
    print(f"built in {time.perf_counter() - start:.1f} s", flush=True)
    generator = torch.Generator().manual_seed(0)
    num_tokens = args.tokens or (700 if is_tiny else 83_968)
    ids = torch.randint(config.vocab_size, (num_tokens,), generator=generator).tolist()
    try:
        results["story"] = measure_story(model, args, ids, ceiling)
    except (CapacityError, torch.OutOfMemoryError) as error:
        results["story"] = {"refused": str(error)}
        print(f"it does not fit: {error}", flush=True)
    finish(results)


if __name__ == "__main__":
    main()
