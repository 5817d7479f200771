"""`epilogue prepare`, `train` and `evaluate`: from a book to a checkpoint and its figures."""

import json
from pathlib import Path

import pytest

from cli.material import BOOK, Run, interrupt
from epilogue.data import Shards

RECIPE = """
train_shards: {shards}
validation_shards: {shards}
out: {out}
steps: 2
context_tokens: 16
batch_tokens: 32
micro_batch_tokens: 32
evaluate_tokens: 32
warmup_steps: 1
model: {{size: tiny}}
"""


@pytest.fixture
def recipe(run: Run, book: Path, tmp_path: Path) -> Path:
    shards = tmp_path / "shards"
    assert run("prepare", book, book, "--out", shards, "--vocab-size", 280).code == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(shards=shards, out=tmp_path / "run"))
    return path


def test_prepare(run: Run, book: Path, tmp_path: Path) -> None:
    done = run("prepare", book, "--out", tmp_path / "shards", "--vocab-size", 280)
    assert (done.code, done.out) == (0, f"{tmp_path / 'shards'}\n")
    assert "1 book, " in done.err
    assert [document.title for document in Shards(tmp_path / "shards").documents] == ["The Pier"]


def test_prepare_leaves_what_is_there(run: Run, book: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert "exists already" in run("prepare", book, "--out", tmp_path).complaint
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("bad", ["missing.txt", "empty.txt"])
def test_prepare_leaves_no_halves(run: Run, tiny: Path, book: Path, tmp_path: Path, bad: str) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    done = run("prepare", book, tmp_path / bad, "--tokenizer", tiny, "--out", tmp_path / "shards")
    assert bad in done.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_prepare_where_nothing_can_be_written(run: Run, tiny: Path, book: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "the system refuses" in run("prepare", book, "--tokenizer", tiny, "--out", tmp_path / "file/x").complaint


def test_ctrl_c_while_preparing(
    run: Run, tiny: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, "preparing", at=1)
    done = run("prepare", book, "--tokenizer", tiny, "--out", tmp_path / "shards")
    assert (done.code, done.out) == (130, "")
    assert "stopped after 1 book" in done.err
    assert not list(tmp_path.iterdir())


def test_train_and_write_with_it(run: Run, recipe: Path, book: Path, tmp_path: Path) -> None:
    done = run("train", recipe)
    assert done.code == 0, done.err
    checkpoint = tmp_path / "run/step-0000002"
    assert done.out == f"{checkpoint}\n"
    assert "bits/byte held out" in done.err
    assert run("write", book, "--model", checkpoint, "--max-new-tokens", 2).code == 0
    assert run("export", checkpoint, tmp_path / "exported", "--format", "hf").code == 0
    assert run("write", book, "--model", tmp_path / "exported", "--max-new-tokens", 2).code == 0
    again = run("train", recipe, "--json")
    assert json.loads(again.out) == {"checkpoint": str(checkpoint), "evaluations": []}
    assert "there is nothing to do" in again.err


def test_ctrl_c_while_training_saves(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "training", at=1)
        done = run("train", recipe)
    assert (done.code, done.out) == (130, "")
    assert "stopped at step 1, saved" in done.err
    rest = run("train", recipe, "--json")
    assert "going on at step 1" in rest.err
    assert [evaluation["step"] for evaluation in json.loads(rest.out)["evaluations"]] == [2]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("stepz=3", "unknown key stepz; did you mean steps?"),
        ("steps=0", "steps must be at least 1"),
        ("steps=many", "steps is 'many'"),
        ("steps", "--set takes key=value"),
        ("train_shards=nowhere", "nowhere is no folder of shards"),
        ("model.size=huge", "model.size is 'huge'"),
        ("model.set={rope: true}", "rope = True, which is not run here"),
    ],
)
def test_bad_recipes(run: Run, recipe: Path, tmp_path: Path, setting: str, said: str) -> None:
    assert said in run("train", recipe, "--set", setting).complaint
    assert not (tmp_path / "run").exists()


def test_recipes_that_are_none(run: Run, tmp_path: Path) -> None:
    assert "cannot be read" in run("train", tmp_path / "none.yaml").complaint
    for text in ("a: [", "- a list", ""):
        (tmp_path / "bad.yaml").write_text(text)
        assert "bad.yaml" in run("train", tmp_path / "bad.yaml").complaint


def test_evaluate(run: Run, tiny: Path, book: Path) -> None:
    done = run("evaluate", book, book, "--model", tiny)
    assert done.code == 0
    heading, first, total = done.out.splitlines()
    assert heading.split()[:4] == ["from", "token", "tokens", "nats/token"]
    assert first.split()[:2] == ["0", total.split()[1]]
    said = json.loads(run("evaluate", book, book, "--model", tiny, "--json").out)
    assert said["num_books"] == 2
    assert f"{said['bits_per_byte']:.4f}" in total
    assert said["by_position"][0]["num_tokens"] == said["num_tokens"]


def test_the_drawing_fits_eighty_columns(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(BOOK * 20)
    lines = run("evaluate", tmp_path / "long.txt", "--model", tiny).out.splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80
    assert sum("█" * 28 in line for line in lines) == 1


def test_evaluate_stops_where_told(run: Run, tiny: Path, book: Path) -> None:
    said = json.loads(run("evaluate", book, book, "--model", tiny, "--books", 1, "--context", 9, "--json").out)
    assert (said["num_books"], said["num_tokens"]) == (1, 8)


def test_ctrl_c_while_evaluating(run: Run, tiny: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "evaluating", at=1)
    done = run("evaluate", book, book, "--model", tiny, "--json")
    assert done.code == 130
    assert json.loads(done.out)["num_books"] == 1
    assert "stopped after 1 book" in done.err


def test_evaluate_needs_a_text(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a")
    assert "longer books" in run("evaluate", tmp_path / "short.txt", "--model", tiny).complaint
    assert "there is no" in run("evaluate", tmp_path / "none", "--model", tiny).complaint
