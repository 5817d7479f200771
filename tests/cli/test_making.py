"""`epilogue prepare`, `train` and `evaluate`: from a book to a checkpoint and its figures."""

import json
import re
from pathlib import Path

import pytest

import epilogue
from cli.material import BOOK, Run, interrupt
from epilogue.data import Shards

BUNDLED_STORY = Path(epilogue.__file__).parent / "bundled" / "a-life-in-being.txt"
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


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in tests/evals; here a second each is saved."""
    monkeypatch.setattr("epilogue.cli.train.measure_flop_per_s", lambda *place: 1e9)


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
    assert not (tmp_path / "shards").exists()


def test_prepare_where_nothing_can_be_written(run: Run, tiny: Path, book: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "the system refuses" in run("prepare", book, "--tokenizer", tiny, "--out", tmp_path / "file/x").complaint


def test_ctrl_c_while_preparing(
    run: Run, tiny: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "preparing", at=1)
        done = run("prepare", book, "--tokenizer", tiny, "--out", tmp_path / "shards")
    assert (done.code, done.out) == (130, "")
    assert "stopped after 1 book; the same command goes on from there" in done.err
    assert not (tmp_path / "shards").exists()
    done = run("prepare", book, "--tokenizer", tiny, "--out", tmp_path / "shards")
    assert done.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_shards_are_shown_and_verified(run: Run, recipe: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    said = json.loads(run("shards", "inspect", shards, "--json").out)
    assert (said["books"], said["dtype"], said["pipeline"]) == (2, "uint16", "prepare-1")
    assert said["tokens"] == Shards(shards).num_tokens
    assert f"{said['tokens']:,}" in run("shards", "inspect", shards).out
    assert "tokens-00000.bin" in run("shards", "verify", shards).out
    assert set(json.loads(run("shards", "verify", shards, "--json").out)["files"]) == set(said["file_bytes"])
    data = bytearray((shards / "tokens-00000.bin").read_bytes())
    data[0] ^= 1
    (shards / "tokens-00000.bin").write_bytes(data)
    assert "tokens-00000.bin is damaged (SHA-256 differs; in 'The Pier')" in run("shards", "verify", shards).complaint
    (shards / "tokens-00000.bin").write_bytes(data[:-1])
    assert "tokens-00000.bin has" in run("shards", "inspect", shards).complaint


def test_prepare_with_the_filter(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "story.txt").write_text(BUNDLED_STORY.read_text())
    (tmp_path / "found" / "short.txt").write_text("It rained.")
    done = run("prepare", tmp_path / "found", "--tokenizer", tiny, "--out", tmp_path / "s", "--filter", "--workers", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 's'}\n")
    assert "1 of 2 books kept" in done.err
    assert [document.id for document in Shards(tmp_path / "s").documents] == ["story"]
    assert "too short" in (tmp_path / "s.books" / "report.html").read_text()


def test_the_filter_of_prepare_says_what_it_wants(run: Run, book: Path, tmp_path: Path) -> None:
    plain = ("prepare", book, "--out", tmp_path / "s")
    assert "need --filter" in run(*plain, "--language", "fr").complaint
    assert "the executor is 'spark'" in run(*plain, "--filter", "--executor", "spark").complaint
    assert "no book passed the filter" in run(*plain, "--filter", "--workers", 1).complaint


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


def test_the_progress_line_and_the_log(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epilogue.cli.progress._EVERY_S", 0.0)
    done = run("train", recipe)
    said = re.search(
        r"training: (\d) of 2 steps, loss [\d.]+, [\d.]+ bits/byte, [\d,]+ tok/s, MFU [\d.]+%, .*iB, about", done.err
    )
    assert said
    first, *_ = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert first.keys() == {
        "step", "loss", "bits_per_byte", "tokens_per_s", "mfu", "memory_bytes", "learning_rate"
    }  # fmt: skip


def test_plot(run: Run, recipe: Path, book: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    assert run("train", recipe).code == 0
    said = run("evaluate", book, "--model", out / "step-0000002", "--json")
    (out / "by-position.json").write_text(said.out)
    assert run("plot", out).out == f"{out / 'plot.png'}\n"
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert run("plot", out, out / "by-position.json", tmp_path / "two.png").out == f"{tmp_path / 'two.png'}\n"
    assert "has no log.jsonl" in run("plot", tmp_path).complaint
    assert "neither a run's folder nor a file" in run("plot", recipe).complaint
    assert "name the runs to draw" in run("plot", tmp_path / "alone.png").complaint


def test_a_new_user_trains_the_tiny_recipe_and_writes(run: Run, recipe: Path, book: Path, tmp_path: Path) -> None:
    """The command of docs/training.md, on shards of one short book, with everything that takes long set smaller."""
    tiny = Path(__file__).parents[2] / "recipes/tiny.yaml"
    changes = {
        "train_shards": tmp_path / "shards", "validation_shards": tmp_path / "shards", "out": tmp_path / "run",
        "model.set": "{d_model: 64, n_heads: 4, n_layers: 2}", "steps": 3, "context_tokens": 16, "batch_tokens": 32,
        "micro_batch_tokens": 32, "evaluate_tokens": 32,
        "stages": "[{from_step: 2, context_tokens: 32, learning_rate: 1e-3}]",
    }  # fmt: skip
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    done = run("train", tiny, *settings)
    assert (done.code, done.out) == (0, f"{tmp_path / 'run/step-0000003'}\n"), done.err
    assert run("write", book, "--model", tmp_path / "run/step-0000003", "--max-new-tokens", 2).code == 0


def test_adapters_are_trained_and_merged(run: Run, recipe: Path, tiny: Path, book: Path, tmp_path: Path) -> None:
    shards = tmp_path / "with-tiny"
    assert run("prepare", book, "--out", shards, "--tokenizer", tiny).code == 0
    folders = ["--set", f"train_shards={shards}", "--set", f"validation_shards={shards}"]
    model = ["--set", f"model={{size: null, initialize_from: {tiny}}}", "--set", "lora={rank: 2}"]
    done = run("train", recipe, *folders, *model)
    assert done.code == 0, done.err
    adapter = tmp_path / "run/step-0000002"
    assert "epilogue merge" in run("write", book, "--model", adapter).complaint
    merged = run("merge", adapter, tmp_path / "merged")
    assert (merged.code, merged.out) == (0, f"{tmp_path / 'merged'}\n"), merged.err
    assert run("write", book, "--model", tmp_path / "merged", "--max-new-tokens", 2).code == 0
    assert "is there already" in run("merge", adapter, tmp_path / "merged").complaint


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


def test_evaluate_the_same_tokens_under_several_contexts(run: Run, tiny: Path, book: Path) -> None:
    arguments = ("evaluate", book, book, "--model", tiny, "--contexts", "16,64", "--targets", 16)
    said = json.loads(run(*arguments, "--json").out)
    assert (said["num_books"], said["targets_per_book"]) == (2, 16)
    first, second = said["by_context"]
    assert (first["context_tokens"], first["change"], second["context_tokens"]) == (16, 0, 64)
    heading, *rows = run(*arguments).out.splitlines()
    assert heading.split()[0] == "window"
    assert [row.split()[0] for row in rows] == ["16", "64"]
    assert "no book has the 65,536 tokens" in run(*arguments[:5], "--contexts", "2k,64k").complaint
    assert "--contexts takes numbers" in run(*arguments[:5], "--contexts", "many").complaint


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
