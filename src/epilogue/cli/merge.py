"""`epilogue merge`: adapters and the model they stand beside, as one model."""

from pathlib import Path

from rich.console import Console

from epilogue.checkpoint import merge_adapter
from epilogue.cli.settings import choose_dtype, in_words


def run_merge(adapter: Path, out: Path, *, base: str | None, dtype: str) -> None:
    """Write the merged model; its folder goes to stdout.

    Raises:
        RequestError: an unknown dtype.
        CheckpointError: adapters or base cannot be read or do not fit, or OUT is there or cannot be written.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    wanted = None if dtype == "auto" else choose_dtype(dtype, "cpu")
    was_quantised = merge_adapter(adapter, out, base=base, dtype=wanted)
    if was_quantised:
        console.print(
            "note: the base was quantised and the merged model is not; `epilogue quantize` makes it small again",
            style="dim", soft_wrap=True,
        )  # fmt: skip
    console.print(f"{in_words(sum(file.stat().st_size for file in out.iterdir()))} written")
    print(out)
