"""A picture shows what the log says: of runs that were resumed, that are under way, several of them at once."""

import json
import sys
from pathlib import Path

import pytest

from epilogue.errors import RequestError
from epilogue.evals.plot import draw, read_drawn
from epilogue.evals.run_curves import read_run

matplotlib = pytest.importorskip("matplotlib")


def write_log(folder: Path, *entries: dict[str, float], tail: str = "") -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return folder


def step(number: int, bits: float) -> dict[str, float]:
    return {"step": number, "loss": 3 * bits, "bits_per_byte": bits}


def test_a_run_under_way_that_was_resumed(tmp_path: Path) -> None:
    held_out = {"step": 2, "validation_loss": 2.0, "validation_bits_per_byte": 1.5}
    entries = [step(1, 3.0), step(2, 2.0), held_out, step(3, 9.0), {"resumed_at": 2}, step(3, 1.0)]
    curves = read_run(write_log(tmp_path / "mine", *entries, tail='{"step": 4, "bits_per'))
    assert curves.training == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert curves.validation == [(2, 1.5)]


def test_several_runs_and_evaluations_are_one_picture(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_log(tmp_path / name, *(step(i, 2.0) for i in range(1, 9)))
    rows = [{"from_position": edge, "bits_per_byte": 1.2} for edge in (0, 256, 1024)]
    (tmp_path / "one" / "held-out.json").write_text(json.dumps({"by_position": rows}))
    contexts = [{"context_tokens": 2048, "change": 0, "change_error": None}]
    (tmp_path / "contexts.json").write_text(json.dumps({"by_context": contexts}))
    figure = draw(read_drawn([tmp_path / "one", tmp_path / "other", tmp_path / "contexts.json"]))
    loss, position, context = figure.axes
    assert {text.get_text() for text in loss.get_legend().get_texts()} == {"one, training", "other, training"}
    assert all(list(line.get_ydata()) == pytest.approx([2.0] * 8) for line in loss.lines)
    assert [text.get_text() for text in position.get_legend().get_texts()] == ["one held-out"]
    assert [text.get_text() for text in context.get_legend().get_texts()] == ["contexts"]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to draw yet"):
        draw(read_drawn([write_log(tmp_path / "run")]))
    with pytest.raises(RequestError, match=r"has no log\.jsonl"):
        read_drawn([tmp_path])


def test_matplotlib_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match=r"pip install 'epilogue\[plot\]'"):
        draw(read_drawn([write_log(tmp_path / "run", step(1, 2.0))]))
