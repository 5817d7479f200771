"""Reading on a CPU: a chunk's attention in C++, beside PyTorch's fused kernel in the same minute.

    python -m benchmarks.attention_cpu

Rows: the extension's instruction sets; the `cpu` backend (PyTorch's fused kernel, tile by tile under a bias); that
kernel alone, without bias or causality, as the ceiling of what it could do. FLOP are those of the pairs that count.
Errors are the root mean square against fp64 over the largest element, on the shortest past.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import finish, machine_card, require_green
from epilogue.kernels.attention import attention
from epilogue.kernels.attention.native import attention_native
from epilogue.kernels.extension import native_module
from epilogue.model import alibi_slopes

HEAD_DIM, QUERIES = 64, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="the least of so many counts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    require_green(["tests/kernels/attention/test_native.py"])
    torch.set_num_threads(args.threads)
    card = machine_card()
    print(card)
    slopes_H, rows = alibi_slopes(args.heads, 16), []
    for num_keys in args.keys:
        q = torch.randn(1, QUERIES, args.heads, HEAD_DIM)
        k, v = (torch.randn(1, args.heads, num_keys, HEAD_DIM).transpose(1, 2) for _ in range(2))
        pairs = args.heads * (QUERIES * (num_keys - QUERIES) + QUERIES * (QUERIES + 1) / 2)
        whole = args.heads * QUERIES * num_keys
        truth = None
        if num_keys == min(args.keys):
            truth = attention(*(x.double() for x in (q, k, v)), slopes_H, scale=HEAD_DIM**-0.5, backend="reference")
        print(f"{QUERIES:,} queries, {num_keys:,} keys, {args.heads} heads of {HEAD_DIM}")
        for name, run in _runs(q, k, v, slopes_H).items():
            seconds, out = _least(run, args.repeats)
            flop = 4 * HEAD_DIM * (whole if name == "PyTorch, fused alone" else pairs)
            error = None
            if truth is not None and name != "PyTorch, fused alone":
                error = ((out - truth).square().mean().sqrt() / truth.abs().max()).item()
            rows.append({"keys": num_keys, "run": name, "gflop_s": flop / seconds / 1e9, "error": error})
            print(
                f"  {name:22} {flop / seconds / 1e9:6.0f} GFLOP/s" + ("" if error is None else f"   error {error:.1e}")
            )
    finish({"machine": card, "threads": args.threads, "rows": rows})


def _runs(q: Tensor, k: Tensor, v: Tensor, slopes_H: Tensor) -> dict[str, Callable[[], Tensor]]:
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    options = {"scale": HEAD_DIM**-0.5}
    runs: dict[str, Callable[[], Tensor]] = {
        "PyTorch, fused alone": lambda: fused(*heads_first, **options)[0],
        "cpu": lambda: attention(q, k, v, slopes_H, backend="cpu", **options),
    }
    for name in ("portable", "avx2", "avx512", "amx"):
        if _has(name):
            runs[name] = partial(attention_native, q, k, v, slopes_H, instructions=name, **options)
    return runs


def _has(instructions: str) -> bool:
    try:
        native_module().kernels(instructions)  # type: ignore[union-attr]
    except ValueError:
        return False
    return True


def _least(run: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    seconds = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        out = run()
        seconds = min(seconds, time.perf_counter() - begun)
    return seconds, out


if __name__ == "__main__":
    main()
