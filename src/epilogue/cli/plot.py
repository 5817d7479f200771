"""`epilogue plot`: runs and evaluations as a picture."""

from pathlib import Path

from epilogue.errors import RequestError
from epilogue.evals.plot import draw, read_drawn

_DOTS_PER_INCH = 100


def run_plot(sources: list[Path]) -> None:
    """Write a PNG and print where; the last of several sources is its place if it ends in .png.

    Raises:
        RequestError: no source, one that holds nothing to draw, or matplotlib is missing.
    """
    *given, last = sources
    out = last if last.suffix.lower() == ".png" else None
    given = given if out else sources
    if not given:
        raise RequestError(f"{last} is a picture to write; name the runs to draw before it")
    if out is None:
        out = given[0] / "plot.png" if given[0].is_dir() else given[0].with_suffix(".png")
    figure = draw(read_drawn(given))
    partial = out.with_name(f".{out.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=_DOTS_PER_INCH)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    print(out)
