"""The `epilogue` command: options and help here, each verb's work in a file of its own that is imported when it runs.

So `epilogue --help` answers before torch could be imported. Text goes to stdout, everything else to stderr. An
`EpilogueError` is printed as its one sentence with exit code 2; `--debug` shows the traceback.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from epilogue.errors import EpilogueError

app = typer.Typer(
    name="epilogue",
    help="Read a whole novel and write what comes next, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of prose.")]
Model = Annotated[
    str | None, typer.Option("--model", help="A checkpoint's folder or hub id; the bundled model if left out.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA, else float32.")
]


@app.callback()
def _top(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    # Read by main() from the arguments: errors must be caught outside every command.
    del debug


@app.command()
def write(
    book: Annotated[
        str | None,
        typer.Argument(
            help=".txt, .md, .html, .epub, gutenberg:ID, or - for standard input; the bundled story if left out."
        ),
    ] = None,
    model: Model = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="The heading or first words of what comes next; '' for none.")
    ] = "EPILOGUE",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to write at most.")] = 400,
    temperature: Annotated[float, typer.Option("--temperature", help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", help="Choose among this many tokens; 0 turns it off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Choose among the likeliest of this mass.")] = 0.95,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Leave out what is less likely than this share of the likeliest.")
    ] = 0.05,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1 makes recent tokens less likely.")
    ] = 1.1,
    repetition_range: Annotated[
        int, typer.Option("--repetition-range", help="How many of the last tokens count as recent; 0 for all.")
    ] = 512,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be given again.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed writes the same text; drawn if left out.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_seq_len: Annotated[
        int | None,
        typer.Option("--max-seq-len", min=1, help="Replace the checkpoint's own; ALiBi reads past it anyway."),
    ] = None,
    json: Json = False,
) -> None:
    """Read a book and write what comes next.

    Only the story goes to stdout. Ctrl-C stops and keeps what was written.

    Examples:

      epilogue write

      epilogue write gatsby.epub --seed 7 > epilogue.txt

      epilogue write gutenberg:64317 --model ./mpt-7b-storywriter --dtype bfloat16
    """
    from epilogue.cli.write import WriteOptions, run_write

    run_write(
        WriteOptions(
            book=book, model=model, prompt=prompt, stop=tuple(stop or ()), device=device, dtype=dtype,
            max_seq_len=max_seq_len, as_json=json,
            sampling={
                "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                "min_p": min_p, "repetition_penalty": repetition_penalty,
                "repetition_range_tokens": repetition_range, "seed": seed,
            },
        )
    )  # fmt: skip


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint's folder, hub id, or a named size such as mpt-7b.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a model's architecture and what it costs to run."""
    from epilogue.cli.info import run_info

    run_info(model, as_json=json)


@app.command()
def prepare(
    sources: Annotated[list[Path], typer.Argument(help=".jsonl, .jsonl.zst and book files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of shards to make.")],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A tokenizer.json or a folder with one; learned if left out.")
    ] = None,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=258, help="Entries of a learned vocabulary.")] = 8192,
) -> None:
    """Turn books into token shards to train on."""
    from epilogue.cli.prepare import run_prepare

    run_prepare(sources, out, tokenizer=tokenizer, vocab_size=vocab_size)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; recipes/ has some.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the recipe, as in optimizer.name=adamw.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a model by a recipe, or go on with a run that was interrupted."""
    from epilogue.cli.train import run_train

    run_train(recipe, overrides=set_ or [], as_json=json)


@app.command()
def evaluate(
    texts: Annotated[list[Path], typer.Argument(help="Held-out books: .jsonl, .jsonl.zst and book files, or folders.")],
    model: Model = None,
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens of each book to read at most.")] = 65536,
    books: Annotated[int | None, typer.Option("--books", min=1, help="Stop after this many books.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Measure bits per byte, and loss by position in the book."""
    from epilogue.cli.evaluate import run_evaluate

    run_evaluate(texts, model=model, context_tokens=context, max_books=books, device=device, dtype=dtype, as_json=json)


def main() -> None:
    """Run the command line; turn an error of ours into its sentence and exit code 2."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except EpilogueError as error:
        if debug:
            raise
        typer.echo(f"epilogue: {error}", err=True)
        sys.exit(2)
