"""The verbs; each one's work is in a file of its own, which is imported when it runs, its options are in options.py.

So `epilogue --help` answers before torch could be imported.
"""

from typing import Annotated

import typer

import epilogue
from epilogue.cli import making_commands, options, serve_options
from epilogue.cli.shards_commands import shards_app
from epilogue.cli.states_commands import states_app

app = typer.Typer(
    name="epilogue",
    help="Read a whole novel and write what comes next, on this machine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"epilogue {epilogue.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; for any verb.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    # main() reads --debug from the arguments: errors must be caught outside every verb.
    del debug, version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def write(
    book: options.Book = None,
    model: options.Model = None,
    prompt: options.Prompt = "EPILOGUE",
    max_new_tokens: options.MaxNewTokens = 400,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repetition_penalty: options.RepetitionPenalty = 1.1,
    repetition_range: options.RepetitionRange = 512,
    stop: options.Stop = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_seq_len: options.MaxSeqLen = None,
    kv_storage: options.KvStorage = "auto",
    epsilon: options.Epsilon = 1e-6,
    no_keep: options.NoKeep = False,
    states: options.States = None,
    states_gib: options.StatesGib = None,
    json: options.Json = False,
) -> None:
    """Read a book and write what comes next.

    Only the story goes to stdout. Ctrl-C stops and keeps what was written. A book that was read is kept, and what has
    not changed since is not read again.

    Examples:

      epilogue write

      epilogue write gatsby.epub --seed 7 > epilogue.txt

      epilogue write novel.txt --prompt "In the morning" --stop "THE END"

      epilogue write gutenberg:64317 --model ./mpt-7b-storywriter
    """
    from epilogue.cli.shelf import library_at
    from epilogue.cli.write import WriteOptions, run_write

    run_write(
        WriteOptions(
            book=book, model=model, prompt=prompt, stop=tuple(stop or ()), device=device, dtype=dtype,
            max_seq_len=max_seq_len, kv_storage=kv_storage, epsilon=epsilon, as_json=json,
            library=library_at(states, states_gib), keeps=not no_keep,
            sampling={
                "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                "min_p": min_p, "repetition_penalty": repetition_penalty,
                "repetition_range_tokens": repetition_range, "seed": seed,
            },
        )
    )  # fmt: skip


@app.command()
def read(
    book: options.Book = None,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    kv_storage: options.KvStorage = "auto",
    epsilon: options.Epsilon = 1e-6,
    states: options.States = None,
    states_gib: options.StatesGib = None,
    json: options.Json = False,
) -> None:
    """Read a book and keep what was read.

    `epilogue write` with the same book and options then begins at once. Of a book that was edited only what is behind
    the first change is read. Ctrl-C keeps what was read so far; the same command goes on from there.

    Example:

      epilogue read novel.txt
    """
    from epilogue.cli.read import ReadOptions, run_read
    from epilogue.cli.shelf import library_at

    run_read(
        ReadOptions(
            book=book, model=model, device=device, dtype=dtype, kv_storage=kv_storage, epsilon=epsilon,
            library=library_at(states, states_gib), as_json=json,
        )
    )  # fmt: skip


app.add_typer(states_app, name="states", rich_help_panel=None)


@app.command()
def info(
    model: options.ModelOrSize = None,
    json: options.Json = False,
) -> None:
    """Show a model's architecture and what it costs to run.

    No weights are fetched or read.
    """
    from epilogue.cli.info import run_info

    run_info(model, as_json=json)


@app.command()
def prepare(
    sources: options.Sources,
    out: options.Out,
    tokenizer: options.GivenTokenizer = None,
    vocab_size: options.VocabSize = 8192,
    workers: options.Workers = None,
    filter_: options.Filter = False,
    language: options.Language = None,
    genre: options.Genre = None,
    least_words: options.LeastWords = None,
    catalogue: options.Catalogue = None,
    held_out: options.HeldOut = None,
    held_out_names: options.HeldOutNames = None,
    executor: options.Executor = None,
    slurm_partition: options.SlurmPartition = None,
) -> None:
    """Turn books into token shards to train on.

    The shards are the same to the byte for any number of workers. Ctrl-C keeps the books that are done; the same
    command goes on from there.

    Examples:

      epilogue prepare novels/ --out shards/train

      epilogue prepare gutenberg/ --out shards/train --filter --held-out gatsby.txt
    """
    from epilogue.cli.prepare import run_prepare
    from epilogue.cli.selecting import FilterOptions, select_sources

    given = FilterOptions(
        language=language,
        genre=genre,
        least_words=least_words,
        catalogues=catalogue,
        held_out=held_out,
        names_file=held_out_names,
        executor=executor,
        workers=workers if filter_ else None,
        partition=slurm_partition,
    )
    sources = select_sources(sources, out, given, is_asked=filter_)
    run_prepare(sources, out, tokenizer=tokenizer, vocab_size=vocab_size, num_workers=workers or 1)


app.add_typer(shards_app, name="shards", rich_help_panel=None)


app.command(short_help="Train a model by a recipe, or go on with a run.")(making_commands.train)


app.command()(making_commands.evaluate)


app.command(short_help="Draw runs and evaluations.")(making_commands.plot)


@app.command(short_help="Measure how fast a model reads and writes.")
def bench(
    model: options.ModelOrSize = None,
    book: options.SpeedText = None,
    lengths: options.Lengths = "2k,8k,16k,32k,64k,82k",
    new_tokens: options.NewTokens = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    kv_storage: options.KvStorage = "auto",
    epsilon: options.Epsilon = 1e-6,
    json: options.Json = False,
) -> None:
    """Measure how fast a model reads and writes on this machine, as the text grows.

    A named size gets random weights and reads random tokens. Ctrl-C shows what was measured so far.

    Examples:

      epilogue bench

      epilogue bench ./mpt-7b-storywriter --book novel.epub --lengths 8k,64k --kv-storage int8

      epilogue bench mpt-7b-storywriter --device cuda --json
    """
    from epilogue.cli.bench import BenchOptions, run_bench

    run_bench(
        BenchOptions(
            model=model, book=book, lengths=lengths, new_tokens=new_tokens, device=device, dtype=dtype,
            kv_storage=kv_storage, epsilon=epsilon, as_json=json,
        )
    )  # fmt: skip


@app.command(short_help="Quantise a model to 4 or 8 bits, calibrated on books.")
def quantize(
    model: options.DenseModel,
    out: options.QuantizedOut,
    bits: options.Bits = 4,
    group_size: options.GroupSize = 128,
    act_order: options.ActOrder = False,
    sym: options.Symmetric = True,
    method: options.Method = "gptq",
    calibration: options.Calibration = None,
    held_out: options.HeldOutBooks = None,
    samples: options.Samples = 16,
    sequence_length: options.SequenceLength = 8192,
    json: options.Json = False,
) -> None:
    """Quantise a model to 4 or 8 bits, block after block from disk, and measure what it lost.

    Calibration reads whole books with the model's own attention. Ctrl-C keeps the blocks that are done; the same
    command goes on from there. The new folder goes to stdout and is a model like any other.

    Example:

      epilogue quantize ./mpt-7b-storywriter ./storywriter-4bit --calibration novels/
    """
    from epilogue.cli.quantize import run_quantize

    run_quantize(
        model, out, bits=bits, group_size=group_size, is_symmetric=sym, has_act_order=act_order, method=method,
        calibration=calibration or [], held_out=held_out or [], num_samples=samples, sequence_tokens=sequence_length,
        as_json=json,
    )  # fmt: skip


@app.command()
def export(
    model: options.ExportModel,
    out: options.ExportOut,
    format_: options.ExportFormat = None,
    type_: options.ExportType = None,
    push_to: options.PushTo = None,
) -> None:
    """Write a model in the format of another program.

    gguf is for llama.cpp and KoboldCpp, one file with the tokenizer in it; hf a folder for transformers, with a model
    card; gptq, gptq_v2 and kobold (KoboldAI's 4-bit fork) folders of a model that `epilogue quantize` made.

    Examples:

      epilogue export ./mpt-7b-storywriter storywriter.gguf --type q8_0

      epilogue export bundled epilogue-tiny.gguf

      epilogue export ./storywriter-4bit ./for-koboldai --format kobold
    """
    from epilogue.cli.export import run_export

    run_export(model, out, format_name=format_, weight_type=type_, push_to=push_to)


app.command(short_help="Put low-rank adapters into the model they were trained beside.")(making_commands.merge)


@app.command(short_help="Serve the Kobold and OpenAI APIs.")
def serve(
    model: options.Model = None,
    host: serve_options.Host = "127.0.0.1",
    port: serve_options.Port = 5001,
    api_key: serve_options.ApiKey = None,
    insecure: serve_options.Insecure = False,
    allow_origin: serve_options.AllowOrigin = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_seq_len: options.MaxSeqLen = None,
    kv_storage: options.KvStorage = "auto",
    epsilon: options.Epsilon = 1e-6,
    context: serve_options.ContextTokens = None,
    saves: serve_options.Saves = None,
    no_keep: serve_options.NoKeep = False,
    grace: serve_options.Grace = 10.0,
    log: serve_options.Log = False,
    states: options.States = None,
    states_gib: options.StatesGib = None,
) -> None:
    """Serve a model to story-writing front ends, over the Kobold and OpenAI APIs.

    A text that one request has read is not read again by the next, nor by one that comes after a restart: long ones
    are kept on disk, with those of `epilogue read` and `epilogue write`. Ctrl-C stops.

    Examples:

      epilogue serve --kv-storage int8

      epilogue serve --saves ~/stories
    """
    from epilogue.cli.serve import ServeOptions, run_serve
    from epilogue.cli.shelf import library_at

    run_serve(
        ServeOptions(
            model=model, host=host, port=port, api_key=api_key, is_insecure=insecure,
            allowed_origins=tuple(allow_origin or ("*",)), device=device, dtype=dtype, max_seq_len=max_seq_len,
            kv_storage=kv_storage, epsilon=epsilon, context_tokens=context, saves=saves, grace_s=grace,
            logs_requests=log, library=None if no_keep else library_at(states, states_gib),
        )
    )  # fmt: skip
