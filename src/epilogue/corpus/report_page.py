"""The report as one HTML page: pictures are drawn in it as SVG, and it asks nothing of any other place."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _BAR, _HEIGHT = 720, 22, 140
_STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fdfcf9 }
h1 { font-weight: normal } h2 { font-size: 1.1rem; margin-top: 2.5rem } svg { width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: #444 } .kept { fill: #3b6e8f } .dropped { fill: #d9a05b }
dt { margin-top: 1rem } dd { margin: 0 } .why { color: #8a4b08 } .excerpt { color: #666; font-size: .9rem }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1d1e20 } svg text { fill: #bbb }
  .excerpt { color: #999 } .why { color: #e0a96d } }
"""


def report_page(summary: Mapping[str, Any]) -> str:
    """The page for what `Report.summary` gives."""
    reasons = {"kept": summary["kept"], **summary["dropped_by_reason"]}
    sections = [
        f"<h1>{summary['kept']:,} of {summary['books']:,} books kept</h1>",
        f"<p>{summary['kept_characters']:,} characters. {_languages(summary['languages'])}</p>",
        "<h2>What became of the books</h2>" + _bars(reasons),
        _section("Length in words", summary["words"], lambda start: f"{start:,.0f}"),
        _section("Decade of first publication, where it is known", summary["decades"], lambda start: f"{start:.0f}"),
        _section("Score as fiction (above 0 is fiction)", summary["fiction_scores"], lambda start: f"{start:g}"),
        "<h2>Some of what was dropped</h2>",
        *(_samples(reason, samples) for reason, samples in summary["samples"].items()),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Books selected</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _languages(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{escape(code)} {count:,}" for code, count in counts.items())
    return f"Languages: {listed}." if listed else ""


def _bars(counts: Mapping[str, int]) -> str:
    """A horizontal bar for every reason."""
    most = max([1, *counts.values()])
    rows = []
    for i, (name, count) in enumerate(counts.items()):
        y, length = i * _BAR, 400 * count / most
        kind = "kept" if name == "kept" else "dropped"
        rows.append(
            f'<text x="180" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{kind}" x="190" y="{y + 4}" width="{length:.1f}" height="14"/>'
            f'<text x="{196 + length:.1f}" y="{y + 15}">{count:,}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_BAR * len(counts)}" role="img">{"".join(rows)}</svg>'


def _section(title: str, bins: Sequence[Mapping[str, float]], name: Any) -> str:
    return f"<h2>{title}</h2>{_columns(bins, name)}" if bins else ""


def _columns(bins: Sequence[Mapping[str, float]], name: Any) -> str:
    """A column for every bin, kept books below dropped ones, named at its foot as far as there is room."""
    most = max(entry["kept"] + entry["dropped"] for entry in bins)
    step = _WIDTH / len(bins)
    every = -(-len(bins) * 60 // _WIDTH)
    shapes = []
    for i, entry in enumerate(bins):
        x, top = i * step + 1, float(_HEIGHT)
        for kind in ("kept", "dropped"):
            height = (_HEIGHT - 20) * entry[kind] / most
            top -= height
            place = f'x="{x:.1f}" y="{top:.1f}" width="{step - 2:.1f}" height="{height:.1f}"'
            what = f"from {name(entry['from'])}: {entry[kind]:,.0f} {kind}"
            shapes.append(f'<rect class="{kind}" {place}><title>{what}</title></rect>')
        if i % every == 0:
            shapes.append(f'<text x="{x:.1f}" y="{_HEIGHT + 16}">{name(entry["from"])}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 24}" role="img">{"".join(shapes)}</svg>'


def _samples(reason: str, samples: Sequence[Mapping[str, str]]) -> str:
    entries = [
        f"<dt>{escape(sample['title'] or sample['id'])}"
        + (f", {escape(sample['author'])}" if sample["author"] else "")
        + f"</dt><dd class='why'>{escape(sample['why'])}</dd><dd class='excerpt'>{escape(sample['excerpt'])}</dd>"
        for sample in samples
    ]
    return f"<h3>{escape(reason)}</h3><dl>{''.join(entries)}</dl>"
