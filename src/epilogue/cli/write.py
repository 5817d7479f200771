"""`epilogue write`: a book in, the story's continuation out; everything that is not story goes to stderr."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from epilogue.checkpoint import Checkpoint, load_tokenizer
from epilogue.cli.memory import peak_memory_bytes
from epilogue.cli.page import Page
from epilogue.cli.settings import BUNDLED_BOOK, in_words, name_of, open_engine, open_model
from epilogue.cli.shelf import Shelf
from epilogue.cli.story import Story
from epilogue.engine import Engine, Library, SamplingParams
from epilogue.errors import RequestError
from epilogue.model import num_parameters
from epilogue.text import Book, read_book


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
    kv_storage: str
    epsilon: float
    library: Library
    keeps: bool
    """Whether what was read is kept for the next time."""
    as_json: bool
    sampling: Mapping[str, Any]


def run_write(options: WriteOptions) -> None:
    """Read, write, and close with a line of figures; Ctrl-C ends the story where it stands, with exit code 130.

    Raises:
        EpilogueError: an option, the book or the model is not usable, or the book does not fit; nothing was written.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    params = SamplingParams(**options.sampling)
    _check_texts(options)
    book = read_book(BUNDLED_BOOK if options.book is None else options.book)
    console.print(_title_line(book), style="dim", soft_wrap=True)
    with console.status("loading the model"):
        checkpoint = open_model(
            options.model, device=options.device, dtype=options.dtype, max_seq_len=options.max_seq_len
        )
        tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    opening = opening_of(options.prompt)
    story = Story(
        engine=open_engine(checkpoint, storage=options.kv_storage, epsilon=options.epsilon),
        tokenizer=tokenizer,
        ids=tokenizer.encode(book.text.rstrip() + "\n\n" + opening),
        params=params,
        stop=options.stop,
        shelf=Shelf(
            options.library,
            console,
            title=book.title or "",
            model=options.model or checkpoint.directory.name,
            **({} if options.keeps else {"least_tokens": None}),
        ),
    )
    console.print(_model_line(options.model, checkpoint), style="dim", soft_wrap=True)
    _note_length(console, story.engine, len(story.ids) + params.max_new_tokens)
    _tell(console, story, opening, is_shown=not options.as_json)
    if options.as_json:
        print(json.dumps(_as_dict(options, book, story, checkpoint)))
    console.print(_closing_line(story, checkpoint), style="dim", soft_wrap=True)
    if story.ended_by == "interrupt":
        raise SystemExit(130)


def opening_of(prompt: str) -> str:
    """What stands below the book's last paragraph, before the model writes.

    A prompt without a small letter is a heading, and the story starts in a paragraph below it; any other is the
    beginning of the story's first paragraph.
    """
    is_heading = prompt == prompt.upper()
    return prompt + ("\n\n" if prompt and is_heading else "")


def _check_texts(options: WriteOptions) -> None:
    if "" in options.stop:
        raise RequestError("--stop is empty; give the text to end before, or leave the option out")
    try:
        options.prompt.encode()
    except UnicodeEncodeError as error:  # a byte of another encoding on the command line
        raise RequestError("--prompt is not text in this terminal's encoding; use a UTF-8 terminal") from error


def _tell(console: Console, story: Story, opening: str, *, is_shown: bool) -> None:
    """Read the book and write the story on the page; what was written stays there, whatever happens."""
    page = Page()
    try:
        story.read(console)
        if is_shown and page.is_terminal:
            page.write("\n" + opening)
        for piece in story.write(console, is_watched=not (is_shown and page.is_terminal)):
            if is_shown:
                page.write(piece)
    except KeyboardInterrupt:
        story.ended_by = "interrupt"
    page.close()
    if is_shown and page.is_terminal:
        console.print()


def _title_line(book: Book) -> str:
    by = f" by {book.author}" if book.author else ""
    return f"{book.title}{by}" if book.title else "a book without a title"


def _model_line(source: str | None, checkpoint: Checkpoint) -> str:
    config, dtype = checkpoint.config, str(checkpoint.dtype).removeprefix("torch.")
    positions = "ALiBi" if config.attn_config.alibi else "learned positions"
    return (
        f"{name_of(source)}: {num_parameters(config) / 1e6:,.1f} million parameters, {config.n_layers} layers,"
        f" {positions}; {dtype} on {checkpoint.model.device}"
    )


def _note_length(console: Console, engine: Engine, num_tokens: int) -> None:
    config = engine.model.config
    trained = config.max_seq_len
    if engine.exceeds_trained_length(num_tokens) and not config.has_position_embedding:
        note = f"note: {num_tokens:,} tokens are more than the {trained:,} this model was trained on; ALiBi reads on"
        console.print(note, style="dim", soft_wrap=True)


def _as_dict(options: WriteOptions, book: Book, story: Story, checkpoint: Checkpoint) -> dict[str, object]:
    stats = story.engine.stats()
    return {
        "text": "".join(story.pieces),
        "seed": story.seed,
        "ended_by": story.ended_by,
        "title": book.title,
        "author": book.author,
        "prompt": options.prompt,
        "model": options.model or checkpoint.directory.name,
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "tokens_opened": story.num_opened,
        "tokens_read": story.num_read,
        "read_s": round(story.read_s, 3),
        "tokens_written": story.num_written,
        "write_s": round(story.write_s, 3),
        "peak_memory_bytes": peak_memory_bytes(checkpoint.model.device),
        "share_visited": round(stats.share_visited, 6),
        "kv_bytes": stats.bytes_held,
        "kv_bytes_dense_bf16": stats.bytes_dense_bf16,
    }


def _closing_line(story: Story, checkpoint: Checkpoint) -> str:
    parts = []
    if story.num_known < len(story.ids):
        parts.append(f"stopped after {story.num_known:,} of {len(story.ids):,} tokens of the book; nothing was written")
    elif story.num_read:
        rate = story.num_read / story.read_s
        parts.append(f"read {story.num_read:,} tokens in {story.read_s:.1f} s ({rate:,.0f} tok/s)")
    if story.num_written:
        parts.append(f"wrote {story.num_written:,} at {story.write_s / story.num_written:.3f} s a token")
    elif story.ended_by != "interrupt":
        parts.append("the model ended the book here and wrote nothing; try another --seed or --prompt")
    stats = story.engine.stats()
    if stats.bytes_held:
        parts.append(
            f"looked at {stats.share_visited:.1%} of all keys, holds {in_words(stats.bytes_held)} of them"
            f" (dense bf16: {in_words(stats.bytes_dense_bf16)})"
        )
    parts.append(f"peak memory {in_words(peak_memory_bytes(checkpoint.model.device))}")
    if story.seed is not None:
        parts.append(f"seed {story.seed}")
    return "; ".join(parts)
