"""`epilogue bench`: how fast a model reads and writes on this machine, beside what the machine can do at best."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_tokenizer
from epilogue.cli.memory import peak_memory_bytes
from epilogue.cli.progress import Watch
from epilogue.cli.settings import (
    BUNDLED_BOOK,
    check_epsilon,
    choose_storage,
    name_of,
    named_size,
    open_model,
    parse_lengths,
    random_model,
)
from epilogue.engine import Engine, Storage
from epilogue.errors import BookError, RequestError
from epilogue.evals import Ceilings, Growth, SpeedRow, growth, machine_facts, measure_ceilings, measure_speed
from epilogue.model import MPT, num_parameters
from epilogue.text import read_book

_LEAST_WIDTH = 84  # of the table, where stdout is no terminal


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the command line was given."""

    model: str | None
    book: str | None
    lengths: str
    new_tokens: int
    device: str
    dtype: str
    kv_storage: str
    epsilon: float
    as_json: bool


@dataclass(kw_only=True)
class Measurement:
    """What is measured, and what is known of it; at every moment true, also after Ctrl-C."""

    name: str
    model: MPT
    storage: Storage
    epsilon: float
    ids: list[int]
    text: str
    """What is read, in words."""
    rows: list[SpeedRow] = field(default_factory=list)
    peaks_bytes: list[int] = field(default_factory=list)
    """Memory of the process, or of the device, up to each row."""
    is_cut: bool = False


def run_bench(options: BenchOptions) -> None:
    """Measure and show; Ctrl-C ends with the rows so far, and exit code 130.

    Raises:
        EpilogueError: an option, the book or the model is not usable, or the longest text does not fit; nothing was
            measured.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    lengths = parse_lengths(options.lengths, option="--lengths")
    measured = _prepare(options, lengths[-1], console)
    _measure(measured, lengths, options.new_tokens, console)
    if measured.is_cut:
        console.print(f"stopped after {len(measured.rows)} of {len(lengths)} lengths")
    if measured.rows:
        _show(options, measured, console)
    if measured.is_cut:
        raise SystemExit(130)


def _measure(measured: Measurement, lengths: list[int], new_tokens: int, console: Console) -> None:
    engine = Engine(measured.model, storage=measured.storage, epsilon=measured.epsilon, lookup=False)
    with Watch(console, "reading", unit="tokens", total=lengths[-1]) as watch:
        rows = measure_speed(
            engine,
            measured.ids,
            lengths,
            new_tokens=new_tokens,
            on_progress=lambda done, total: watch.update(done),
        )
        try:
            for row in rows:
                measured.rows.append(row)
                measured.peaks_bytes.append(peak_memory_bytes(measured.model.device))
        except KeyboardInterrupt:
            measured.is_cut = True


def _show(options: BenchOptions, measured: Measurement, console: Console) -> None:
    # Only now: the memory that this takes must not count as the model's.
    with console.status("measuring the machine"):
        ceilings = measure_ceilings(measured.model.device, measured.model.dtype)
    if options.as_json:
        print(json.dumps(_as_dict(measured, ceilings, options.new_tokens)))
    else:
        _draw(measured, ceilings)


def _prepare(options: BenchOptions, num_tokens: int, console: Console) -> Measurement:
    """Everything that can be refused before the engine looks at the lengths."""
    epsilon = check_epsilon(options.epsilon)
    config = named_size(options.model) if options.model else None
    if config is not None and options.book is not None:
        raise RequestError(f"{options.model} is a size without a tokenizer and reads random tokens; leave --book out")
    with console.status("loading the model"):
        if config is not None:
            assert options.model is not None
            model = random_model(options.model, config, device=options.device, dtype=options.dtype)
            name, (ids, text) = f"{options.model}, random weights", _random_ids(config.vocab_size, num_tokens)
        else:
            name = options.model or name_of(None)
            model, ids, text = _trained(options, num_tokens)
    storage = choose_storage(options.kv_storage, model.dtype)
    return Measurement(name=name, model=model, storage=storage, epsilon=epsilon, ids=ids, text=text)


def _random_ids(vocab_size: int, num_tokens: int) -> tuple[list[int], str]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        vocab_size, (num_tokens,), generator=generator
    ).tolist(), "random tokens; trained weights reach further"


def _trained(options: BenchOptions, num_tokens: int) -> tuple[MPT, list[int], str]:
    book = read_book(BUNDLED_BOOK if options.book is None else options.book)
    checkpoint = open_model(options.model, device=options.device, dtype=options.dtype)
    ids = load_tokenizer(checkpoint.directory, checkpoint.config).encode(book.text)
    if not ids:
        raise BookError(f"{options.book} has no text to read; give another book")
    text = f"{book.title or 'a book without a title'}, {len(ids):,} tokens"
    if num_tokens > len(ids):
        text += f", read {num_tokens / len(ids):.1f} times over"
    return checkpoint.model, (ids * -(-num_tokens // len(ids)))[:num_tokens], text


def _as_dict(measured: Measurement, ceilings: Ceilings, new_tokens: int) -> dict[str, object]:
    compared = growth(measured.rows)
    pairs = zip(measured.rows, measured.peaks_bytes, strict=True)
    return {
        "machine": machine_facts(measured.model.device, ceilings),
        "model": measured.name,
        "parameters": num_parameters(measured.model.config),
        "dtype": str(measured.model.dtype).removeprefix("torch."),
        "kv_storage": measured.storage,
        "epsilon": measured.epsilon,
        "text": measured.text,
        "new_tokens": new_tokens,
        "rows": [
            {
                **asdict(row),
                "tokens_per_s": row.tokens_per_s,
                "mfu": row.mfu(ceilings),
                "visited_mfu": row.visited_mfu(ceilings),
                "mbu": row.mbu(ceilings),
                "peak_memory_bytes": peak_bytes,
            }
            for row, peak_bytes in pairs
        ],
        "growth": None if compared is None else asdict(compared),
        "ended_by": "interrupt" if measured.is_cut else "end",
    }


def _draw(measured: Measurement, ceilings: Ceilings) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    console.print(_machine_line(machine_facts(measured.model.device, ceilings), ceilings), soft_wrap=True)
    console.print(_model_line(measured), soft_wrap=True)
    console.print()
    console.print(_table(measured, ceilings))
    console.print()
    console.print(_legend(measured, ceilings), soft_wrap=True)
    if compared := growth(measured.rows):
        console.print(_growth_line(compared), soft_wrap=True)


def _machine_line(facts: dict[str, Any], ceilings: Ceilings) -> str:
    threads = f", {facts['threads']} threads" if facts["device"] == "cpu" else ""
    load = f"; load {facts['load']}" if "load" in facts else ""
    return (
        f"{facts['processor']}{threads}: {ceilings.flop_per_s / 1e9:,.0f} GFLOP/s of {ceilings.dtype} products,"
        f" {ceilings.read_bytes_per_s / 1e9:,.1f} GB/s read, measured now{load}"
    )


def _model_line(measured: Measurement) -> str:
    return (
        f"{measured.name}: {num_parameters(measured.model.config) / 1e6:,.1f} million parameters in"
        f" {str(measured.model.dtype).removeprefix('torch.')}, keys and values in {measured.storage},"
        f" epsilon {measured.epsilon:g}; reads {measured.text}"
    )


def _table(measured: Measurement, ceilings: Ceilings) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    headings = (
        "text\ntokens", "read\ns", "read\ntok/s", "latest\ntok/s", "MFU\n%", "visited\nMFU %", "keys\nseen %",
        "write\nms/token", "MBU\n%", "held\nMiB", "dense\nMiB", "peak\nMiB",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, peak_bytes in zip(measured.rows, measured.peaks_bytes, strict=True):
        table.add_row(*_cells(row, ceilings, peak_bytes))
    return table


def _cells(row: SpeedRow, ceilings: Ceilings, peak_bytes: int) -> list[str]:
    return [
        f"{row.num_tokens:,}",
        f"{row.read_s:,.1f}",
        f"{row.tokens_per_s:,.0f}",
        f"{row.stretch_tokens_per_s:,.0f}",
        f"{row.mfu(ceilings):.1%}"[:-1],
        f"{row.visited_mfu(ceilings):.1%}"[:-1],
        f"{row.share_visited:.1%}"[:-1],
        f"{row.token_s * 1000:,.1f}",
        f"{row.mbu(ceilings):.1%}"[:-1],
        *(f"{num_bytes / 2**20:,.0f}" for num_bytes in (row.bytes_held, row.bytes_dense_bf16, peak_bytes)),
    ]


def _legend(measured: Measurement, ceilings: Ceilings) -> str:
    # On a CPU memory is taken when a page is first written; elsewhere the pool is there from the beginning.
    peak = "" if measured.model.device.type == "cpu" else " Peak counts all memory set aside for them."
    return (
        "MFU: arithmetic of dense causal attention and the weights, a second, over the machine's"
        f" {ceilings.flop_per_s / 1e9:,.0f} GFLOP/s; it can pass 100, because keys that cannot matter are skipped; the"
        " visited MFU counts only what was visited. MBU: weights, keys and values that a new token must read, a second,"
        f" over {ceilings.read_bytes_per_s / 1e9:,.1f} GB/s. Held and dense: keys and values, dense in bf16.{peak}"
    )


def _growth_line(compared: Growth) -> str:
    first, last = f"{compared.from_tokens:,}", f"{compared.to_tokens:,}"
    return (
        f"From {first} to {last} tokens, reading time grows as the length to the power {compared.read_exponent:.2f}; a"
        f" new token takes {compared.token_ratio:.1f} times as long and visits {compared.visited_ratio:.1f} times as"
        f" many keys, for {compared.share_reaching:.0%} of all heads look further back than {first} tokens."
    )
