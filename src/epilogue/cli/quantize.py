"""`epilogue quantize`: a dense checkpoint to a quantised one, with what that cost in bits per byte."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from epilogue.checkpoint import load_config, load_tokenizer, resolve
from epilogue.cli.progress import Watch
from epilogue.cli.settings import BUNDLED_BOOK, BUNDLED_MODEL, BUNDLED_NAME
from epilogue.data import iterate_documents
from epilogue.errors import RequestError
from epilogue.quant import HeldOut, Job, LayerReport, Method, Report, Scheme, book_samples, quantise_checkpoint
from epilogue.text import Tokenizer

_LAYERS_A_BLOCK = 4
# The share of the bundled story that is held out where it is calibrated on.
_HELD_OUT_SHARE = 0.25


def run_quantize(
    model: str,
    out: Path,
    *,
    bits: int,
    group_size: int,
    is_symmetric: bool,
    has_act_order: bool,
    method: str,
    calibration: list[Path],
    held_out: list[Path],
    num_samples: int,
    sequence_tokens: int,
    as_json: bool,
) -> None:
    """Quantise with the progress on stderr, the report and the new folder on stdout; Ctrl-C leaves work to go on with.

    Raises:
        EpilogueError: the model or a book cannot be read, ``out`` is taken, or a choice there is none of.
    """
    if method not in ("gptq", "rtn"):
        raise RequestError(f"method must be gptq or rtn, got {method!r}")
    try:
        scheme = Scheme(bits=bits, group_size=group_size, is_symmetric=is_symmetric, has_act_order=has_act_order)
    except ValueError as error:
        raise RequestError(f"{error}; see `epilogue quantize --help`") from error
    console = Console(stderr=True, highlight=False, markup=False)
    source = BUNDLED_MODEL if model == BUNDLED_NAME and not Path(model).exists() else resolve(model)
    tokenizer = load_tokenizer(source, load_config(source))
    samples, measured = _texts(tokenizer, calibration, held_out, num_samples, sequence_tokens, console)
    job = Job(
        source=source,
        out=out,
        scheme=scheme,
        method=cast(Method, method),
        calibration=samples if method == "gptq" else [],
        held_out=measured,
    )
    report = _quantise(job, console)
    if as_json:
        print(json.dumps({"checkpoint": str(out)} | asdict(report)))
    else:
        _draw(report)
        print(out)


def _texts(
    tokenizer: Tokenizer,
    calibration: list[Path],
    held_out: list[Path],
    num_samples: int,
    sequence_tokens: int,
    console: Console,
) -> tuple[list[list[int]], HeldOut]:
    """Samples to calibrate on, and others to measure on."""
    story = next(iter(iterate_documents([BUNDLED_BOOK]))).text
    cut = 0 if calibration else int(len(story) * (1 - _HELD_OUT_SHARE))
    if not calibration:
        console.print(
            "calibrating on the bundled story, which is short; --calibration takes whole books, and the model will be"
            " the better for it",
            soft_wrap=True,
        )

    def samples(texts: Iterable[str], most: int) -> list[list[int]]:
        return book_samples(tokenizer, texts, num_samples=most, sequence_tokens=sequence_tokens)

    books = (document.text for document in iterate_documents(calibration)) if calibration else [story[:cut]]
    others = (document.text for document in iterate_documents(held_out)) if held_out else [story[cut:]]
    chosen, measured = samples(books, num_samples), samples(others, max(1, num_samples // 4))
    num_bytes = sum(len(tokenizer.token_bytes(i)) for ids in measured for i in ids[1:])
    return chosen, HeldOut(measured, num_bytes)


def _quantise(job: Job, console: Console) -> Report:
    config = load_config(job.source)
    total = config.n_layers * _LAYERS_A_BLOCK
    tokens = sum(map(len, job.calibration))
    words = f"{len(job.calibration):,} samples of {tokens:,} tokens in all" if job.calibration else "no samples"
    console.print(
        f"quantising {job.source.name} to {job.scheme.bits} bits by {job.method}, {words}", style="dim", soft_wrap=True
    )
    num_done = 0

    def on_start(done: int, of: int) -> None:
        nonlocal num_done
        num_done = done * _LAYERS_A_BLOCK
        if done:
            console.print(f"going on at block {done + 1} of {of}", style="dim")

    with Watch(console, "quantising", unit="layers", total=total) as watch:

        def on_layer(layer: LayerReport) -> None:
            nonlocal num_done
            num_done += 1
            watch.update(num_done, f"block {layer.block}, {layer.layer}, error {layer.error:.2%}")

        try:
            return quantise_checkpoint(job, on_start=on_start, on_layer=on_layer)
        except KeyboardInterrupt:
            console.print(
                f"stopped at layer {num_done:,} of {total:,}; the same command goes on from {job.workplace}",
                soft_wrap=True,
            )
            raise SystemExit(130) from None


def _draw(report: Report) -> None:
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("block", "layer", "error, nearest", "error", "seconds"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for layer in report.layers:
        table.add_row(
            str(layer.block),
            layer.layer,
            f"{layer.error_nearest:.3%}",
            f"{layer.error:.3%}",
            f"{layer.seconds:.1f}",
        )
    console.print(table)
    change = report.quantised_bits_per_byte / report.dense_bits_per_byte - 1
    console.print(
        f"held out, {report.held_out_tokens:,} tokens: {report.dense_bits_per_byte:.4f} bits/byte dense,"
        f" {report.quantised_bits_per_byte:.4f} quantised ({change:+.2%})",
        soft_wrap=True,
    )
