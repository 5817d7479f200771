"""`epilogue write`: a book in, the story's continuation out; everything that is not story goes to stderr."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from epilogue.checkpoint import Checkpoint, load_tokenizer
from epilogue.cli.memory import peak_memory_bytes
from epilogue.cli.settings import BUNDLED_BOOK, open_model
from epilogue.engine import Engine, SamplingParams, Sequence, stream_text
from epilogue.text import Book, TextStream, Tokenizer, read_book


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What the command line was given."""

    book: str | None
    model: str | None
    prompt: str
    stop: tuple[str, ...]
    device: str
    dtype: str
    max_seq_len: int | None
    as_json: bool
    sampling: Mapping[str, Any]


@dataclass(kw_only=True)
class _Clock:
    """What the closing line tells."""

    num_read: int = 0
    read_s: float = 0.0
    num_written: int = 0
    write_s: float = 0.0


def run_write(options: WriteOptions) -> None:
    """Read, write, and close with a line of figures; Ctrl-C ends the story where it stands, with exit code 130."""
    console = Console(stderr=True, highlight=False)
    params = SamplingParams(**options.sampling)
    book = read_book(options.book or BUNDLED_BOOK)
    checkpoint = open_model(options.model, device=options.device, dtype=options.dtype, max_seq_len=options.max_seq_len)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    engine = Engine(checkpoint.model)
    ids = tokenizer.encode(prompt_text(book, options.prompt))
    _announce(console, engine, book, len(ids) + params.max_new_tokens)

    clock, pieces, is_cut = _Clock(), [], False
    seed: int | None = None
    try:
        sequence = _read(console, engine, ids, params, clock)
        for piece in _write(engine, sequence, params, tokenizer, options.stop, clock):
            pieces.append(piece)
            if not options.as_json:
                print(piece, end="", flush=True)
        seed = sequence.sampler.seed if sequence.sampler else None
    except KeyboardInterrupt:
        is_cut = True
    if options.as_json:
        print(json.dumps(_as_dict("".join(pieces), seed, clock, checkpoint), ensure_ascii=False))
    elif pieces:
        print()
    console.print(_closing_line(clock, seed, checkpoint), style="dim", soft_wrap=True)
    if is_cut:
        raise SystemExit(130)


def prompt_text(book: Book, prompt: str) -> str:
    """The book and, as a paragraph of its own behind it, the prompt.

    A prompt without a small letter is a heading, and the story starts in a paragraph below it; any other is the
    beginning of the story's first paragraph.
    """
    is_heading = prompt == prompt.upper()
    return book.text.rstrip() + "\n\n" + prompt + ("\n\n" if prompt and is_heading else "")


def _announce(console: Console, engine: Engine, book: Book, num_tokens: int) -> None:
    by = f" by {book.author}" if book.author else ""
    console.print(f"{book.title}{by}" if book.title else "a book without a title", style="dim", soft_wrap=True)
    if engine.exceeds_trained_length(num_tokens):
        trained = engine.model.config.max_seq_len
        console.print(
            f"note: {num_tokens:,} tokens are more than the {trained:,} this model was trained on; ALiBi reads on",
            style="dim",
        )


def _read(console: Console, engine: Engine, ids: list[int], params: SamplingParams, clock: _Clock) -> Sequence:
    columns = (
        TextColumn("reading"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens  {task.fields[rate]:,.0f} tok/s"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=len(ids), rate=0.0)

        def on_progress(done: int, total: int) -> None:
            clock.num_read, clock.read_s = done, time.perf_counter() - start
            bar.update(task, completed=done, rate=done / clock.read_s)

        return engine.read(ids, room_tokens=params.max_new_tokens, on_progress=on_progress)


def _write(
    engine: Engine,
    sequence: Sequence,
    params: SamplingParams,
    tokenizer: Tokenizer,
    stop: tuple[str, ...],
    clock: _Clock,
) -> Iterator[str]:
    start = time.perf_counter()

    def timed() -> Iterator[int]:
        tokens = engine.write(sequence, params, eos_id=tokenizer.eos_id, num_tokens=tokenizer.vocab_size)
        for token_id in tokens:
            clock.num_written, clock.write_s = clock.num_written + 1, time.perf_counter() - start
            yield token_id

    yield from stream_text(timed(), TextStream(tokenizer, stop))


def _as_dict(text: str, seed: int | None, clock: _Clock, checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "text": text,
        "seed": seed,
        "tokens_read": clock.num_read,
        "read_s": round(clock.read_s, 3),
        "tokens_written": clock.num_written,
        "write_s": round(clock.write_s, 3),
        "peak_memory_bytes": peak_memory_bytes(checkpoint.model.device),
    }


def _closing_line(clock: _Clock, seed: int | None, checkpoint: Checkpoint) -> str:
    parts = []
    if clock.num_read:
        rate = clock.num_read / clock.read_s
        parts.append(f"read {clock.num_read:,} tokens in {clock.read_s:.1f} s ({rate:,.0f} tok/s)")
    if clock.num_written:
        parts.append(f"wrote {clock.num_written:,} at {clock.write_s / clock.num_written:.3f} s a token")
    parts.append(f"peak memory {peak_memory_bytes(checkpoint.model.device) / 2**30:.2f} GiB")
    if seed is not None:
        parts.append(f"seed {seed}")
    return "; ".join(parts)
