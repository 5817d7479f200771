"""`epilogue quantize`, and what the other verbs do with what it makes."""

import json
from pathlib import Path

import pytest

from cli.material import Run, interrupt

FLAGS = ("--group-size", 16, "--samples", 2, "--sequence-length", 32)


def test_quantise_and_use(run: Run, tiny: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = run("quantize", tiny, out, "--calibration", book, "--held-out", book, *FLAGS)
    assert done.code == 0, done.err
    *table, figures, place = done.out.splitlines()
    assert place == str(out)
    assert len(table) == 1 + 8
    assert "bits/byte dense" in figures
    assert run("write", book, "--model", out, "--max-new-tokens", 2).code == 0
    assert run("evaluate", book, "--model", out).code == 0
    said = run("info", out).out
    assert "4 bits in the blocks, groups of 16" in said
    assert json.loads(run("info", out, "--json").out)["bits"] == 4


def test_without_books_the_bundled_story_is_read(run: Run, tiny: Path, tmp_path: Path) -> None:
    done = run("quantize", tiny, tmp_path / "made", "--json", *FLAGS)
    assert "calibrating on the bundled story, which is short" in done.err
    said = json.loads(done.out)
    assert said["checkpoint"] == str(tmp_path / "made")
    assert said["calibration_tokens"] == 64
    assert said["held_out_tokens"] == 32


def test_nearest_rounding_calibrates_on_nothing(run: Run, tiny: Path, book: Path, tmp_path: Path) -> None:
    said = json.loads(run("quantize", tiny, tmp_path / "made", "--method", "rtn", "--json", *FLAGS).out)
    assert said["calibration_tokens"] == 0


def test_ctrl_c_and_on(run: Run, tiny: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("quantize", tiny, tmp_path / "made", "--calibration", book, *FLAGS)
    with monkeypatch.context() as patch:
        interrupt(patch, "quantising", at=5)
        done = run(*command)
    assert (done.code, done.out) == (130, "")
    assert "stopped at layer 5 of 8; the same command goes on" in done.err
    again = run(*command)
    assert "going on at block 2 of 2" in again.err
    assert again.code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bits", 3), "wanted 4 or 8 bits"),
        (("--group-size", 0), "wanted 4 or 8 bits and a positive group size or -1, got 4 and 0"),
        (("--method", "awq"), "method must be gptq or rtn, got 'awq'"),
        (("--calibration", "nowhere"), "there is no nowhere"),
        (("--sequence-length", 1), "--sequence-length"),
    ],
)
def test_refusals(run: Run, tiny: Path, tmp_path: Path, flags: tuple[object, ...], said: str) -> None:
    assert said in run("quantize", tiny, tmp_path / "made", *flags).complaint
    assert not list(tmp_path.iterdir())
