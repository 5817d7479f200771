"""Writing with 4-bit weights of a 7B shape on a CPU, against llama.cpp's Q4_0: the same numbers and cores, one run.

    python -m benchmarks.peers.four_bits --folder DIR          # 32 layers; 8 GB of disk and 17 GB of memory
    python -m benchmarks.peers.four_bits --layers 4            # a shorter model
    python -m benchmarks.peers.four_bits --eight-bit-kv        # int8 and q8_0 keys and values instead
    python -m benchmarks.peers.four_bits --quick               # does it work?

Both read 512 tokens and write behind them, taking turns; then behind 8,192, for which both hold the keys and values of
those 512 tokens sixteen times over, put in by each program's own means of restoring a state: reading them would take
minutes. ALiBi has no positions in keys, so that is a past like any other. The likeliest token is written each time, and
told are the fastest and the median token of each program's best turn. llama.cpp: flash attention, f16 keys and values.
epilogue: bfloat16 (as many bytes); the head in 8 bits, as for every quantised model, where llama.cpp's file has Q4_0;
reach and its plan as ever (epsilon 1e-6). With --folder the files are made once and kept.
"""

import argparse
import ctypes
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast
from unittest.mock import patch

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.peers.four_bits_model import STORYWRITER, write_both
from benchmarks.peers.llama import LlamaReader
from epilogue.engine import Engine, SamplingParams, Storage
from epilogue.kernels.extension import native_instructions
from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import MPTConfig

NEAR = 512
ROOM = 256


class Program(Protocol):
    """One program with the first tokens read."""

    read_s: float

    def deepen(self, times: int) -> None:
        """Hold what was read so many times over."""

    def write(self, num_tokens: int) -> list[float]:
        """Seconds of every token; they are forgotten again."""

    def logits_V(self) -> Tensor:
        """Behind the first tokens."""

    def close(self) -> None:
        """Give the memory back."""


class LlamaCpp:
    def __init__(self, gguf: Path, ids: list[int], depth: int, threads: int, kv_type: str) -> None:
        defaults = llama_cpp.llama_context_default_params

        def several() -> Any:
            params = defaults()
            params.n_seq_max, params.kv_unified = depth // NEAR + 1, True
            return params

        with patch.object(llama_cpp, "llama_context_default_params", several):
            self._reader = LlamaReader(gguf, room_tokens=depth + ROOM, threads=threads, kv_type=kv_type)
        self.read_s = sum(self._reader.read(ids))
        self._logits_V = self._reader.logits_V()

    def logits_V(self) -> Tensor:
        return self._logits_V

    def deepen(self, times: int) -> None:
        context = self._reader._llama._ctx
        memory = llama_cpp.llama_get_memory(context.ctx)
        size = llama_cpp.llama_state_seq_get_size(context.ctx, 0)
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        assert llama_cpp.llama_state_seq_get_data(context.ctx, pointer, size, 0) == size
        places = _positions(state)
        for i in range(1, times):
            state.view(np.int32)[places] = np.arange(i * NEAR, (i + 1) * NEAR)
            assert llama_cpp.llama_state_seq_set_data(context.ctx, pointer, size, i) > 0
            llama_cpp.llama_memory_seq_cp(memory, i, 0, -1, -1)
        assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == times * NEAR - 1
        self._reader._llama.n_tokens = times * NEAR

    def write(self, num_tokens: int) -> list[float]:
        return self._reader.write(num_tokens)

    def close(self) -> None:
        self._reader.close()


def _positions(state: "np.ndarray[Any, np.dtype[np.uint8]]") -> slice:
    """Where a state of one sequence has the positions of its cells: 0, 1, 2 ... at one distance."""
    words = state[: len(state) // 4 * 4].view(np.int32)[: 16 * NEAR]
    for start in range(16):
        for step in range(1, 6):
            if np.array_equal(words[start : start + NEAR * step : step], np.arange(NEAR)):
                return slice(start, start + NEAR * step, step)
    raise ValueError("this llama.cpp writes its states in another way")


class Epilogue:
    def __init__(self, engine: Engine, ids: list[int]) -> None:
        self._engine, self._ids = engine, ids
        begun = time.perf_counter()
        self._sequence = engine.open_book(ids, room_tokens=ROOM)
        self.read_s = time.perf_counter() - begun
        logits_V = self._sequence.logits_V
        assert logits_V is not None
        self._logits_V = logits_V.float()
        self.share_visited = 0.0

    def logits_V(self) -> Tensor:
        return self._logits_V

    def deepen(self, times: int) -> None:
        engine, table = self._engine, self._sequence.table
        stop = NEAR // PAGE_TOKENS
        ids_LKP = table.ids_LKP[..., :stop].repeat(1, 1, times)
        deep = engine.pages.adopt(
            torch.ones_like(ids_LKP, dtype=torch.bool),
            table.norms_LKP[..., :stop].repeat(1, 1, times),
            table.scores_LHP[..., :stop].repeat(1, 1, times),
            times * NEAR,
        )
        targets_LKP = deep.ids_LKP[..., : ids_LKP.shape[2]]
        for sources, targets in zip(ids_LKP, targets_LKP, strict=True):
            engine.pages.pool.copy_pages(sources.flatten(), targets.flatten())
        # The last token goes through the model again, to know what comes next.
        engine.pages.truncate(deep, times * NEAR - 1)
        engine.close(self._sequence)
        self._sequence = engine.adopt(self._ids * times, deep, None)

    def write(self, num_tokens: int) -> list[float]:
        engine = self._engine
        twin = engine.fork(self._sequence)
        params = SamplingParams(max_new_tokens=num_tokens + 2, temperature=0, ignore_eos=True)
        before = twin.reads.visited_H.sum(), twin.reads.dense_H.sum()
        stamps = [time.perf_counter() for _ in engine.stream(twin, params, eos_id=0)]
        after = twin.reads.visited_H.sum(), twin.reads.dense_H.sum()
        self.share_visited = float(after[0] - before[0]) / float(after[1] - before[1])
        engine.close(twin)
        return np.diff(stamps)[1:].tolist()

    def close(self) -> None:
        self._engine.close(self._sequence)


def race(programs: dict[str, Program], args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Of each program the fastest and the median token a second of its best turn, behind 512 tokens and behind more."""
    best: dict[str, Any] = {
        name: {"read_s": round(program.read_s, 2), "tokens_per_s": {}, "median_tokens_per_s": {}}
        for name, program in programs.items()
    }
    for here in (NEAR, args.depth):
        if here > NEAR:
            for program in programs.values():
                program.deepen(here // NEAR)
        for _ in range(args.rounds):
            for name, program in programs.items():
                seconds = program.write(args.new_tokens)
                turn = {"tokens_per_s": 1 / min(seconds), "median_tokens_per_s": 1 / statistics.median(seconds)}
                say(f"  behind {here:6,}: {name:20} {' '.join(f'{speed:.2f}' for speed in turn.values())}")
                for kind, speed in turn.items():
                    best[name][kind][here] = round(max(speed, best[name][kind].get(here, 0.0)), 2)
    return best


def files_of(folder: Path, config: MPTConfig, num_distinct: int) -> tuple[Path, Path]:
    """The two files of this shape, made if they are not there yet."""
    place = folder / f"{config.n_layers}-layers-of-{config.d_model}"
    if not place.exists():
        unfinished = place.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_both(unfinished, config, num_distinct=num_distinct)
        unfinished.rename(place)
    return place / "gptq", place / "q4_0.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=STORYWRITER.n_layers)
    parser.add_argument("--distinct", type=int, default=2, help="layers that are drawn; the others repeat them")
    parser.add_argument("--depth", type=int, default=8192, help="tokens of the long context")
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keeps the files; a temporary one if not given")
    parser.add_argument("--eight-bit-kv", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small model, no tests first")
    parser.add_argument("--json", action="store_true", help="nothing but the closing line on stdout")
    args = parser.parse_args()
    config = replace(STORYWRITER, n_layers=args.layers)
    if args.quick:
        config = replace(config, d_model=256, n_heads=2, n_layers=2, vocab_size=8192)
        args.depth, args.rounds = min(args.depth, 2048), 1
    else:
        require_green(["tests/kernels/quant_linear/test_native.py", "tests/model/test_native_step.py"])
    if args.depth % NEAR:
        parser.error(f"--depth must be a multiple of {NEAR}")
    begun = time.perf_counter()
    torch.set_num_threads(args.threads)
    card = machine_card() | {"instructions": native_instructions()}

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    say(str(card))
    ids = torch.randint(8192, (NEAR,), generator=torch.Generator().manual_seed(1)).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, gguf = files_of(args.folder or Path(scratch), config, min(args.distinct, config.n_layers))
        sizes = {"gptq": sum(x.stat().st_size for x in checkpoint.iterdir()), "q4_0": gguf.stat().st_size}
        say(f"{config.n_layers} layers of width {config.d_model}: {sizes}")
        theirs_kv, ours_kv = ("q8_0", "int8") if args.eight_bit_kv else ("f16", "bfloat16")
        programs: dict[str, Program] = {
            f"llama.cpp {theirs_kv}": LlamaCpp(gguf, ids, args.depth, args.threads, theirs_kv),
            f"epilogue {ours_kv}": Epilogue(open_engine(checkpoint, config, args.depth, cast(Storage, ours_kv)), ids),
        }
        say(f"both have read {NEAR} tokens {time.perf_counter() - begun:.0f} s after the start")
        best = race(programs, args, say)
        theirs, ours = (program.logits_V() for program in programs.values())
        share_visited = next(x.share_visited for x in programs.values() if isinstance(x, Epilogue))
        for program in programs.values():
            program.close()
    difference = float((ours - theirs).norm() / theirs.norm())
    say(f"\n| tokens/s | behind {NEAR:,} | behind {args.depth:,} | reading {NEAR:,} |\n| --- | ---: | ---: | ---: |")
    for name, row in best.items():
        near, far = row["tokens_per_s"][NEAR], row["tokens_per_s"][args.depth]
        say(f"| {name} | {near:.2f} | {far:.2f} | {row['read_s']:.1f} s |")
    say(f"\nlogits behind {NEAR} tokens differ by {difference:.2%}; {share_visited:.0%} of keys were visited")
    finish({
        "machine": card, "options": vars(args) | {"folder": str(args.folder)}, "n_layers": config.n_layers,
        "d_model": config.d_model, "bytes": sizes, "rows": best, "logits_differ": round(difference, 5),
        "share_visited": round(share_visited, 3), "seconds": round(time.perf_counter() - begun),
    })  # fmt: skip


def open_engine(checkpoint: Path, config: MPTConfig, depth: int, storage: Storage) -> Engine:
    """With room for the text so often that one can be restored beside it."""
    pages = 2 * config.n_layers * config.kv_n_heads * (depth + ROOM) // PAGE_TOKENS
    return Engine.load(checkpoint, dtype=torch.float32, storage=storage, lookup=False, num_pages=pages)


if __name__ == "__main__":
    main()
