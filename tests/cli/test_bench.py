"""`epilogue bench`: the table, the object, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cli.material import Run, interrupt
from cli.test_process import needs_posix, start
from epilogue.cli.settings import parse_lengths
from epilogue.engine import Engine
from epilogue.evals import Ceilings

SHORT = ("--lengths", "100,300", "--new-tokens", "2")


@pytest.fixture(autouse=True)
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in tests/evals; here a second each is saved."""
    ceilings = Ceilings(flop_per_s=123e9, dtype="float32", read_bytes_per_s=45.6e9)
    monkeypatch.setattr("epilogue.cli.bench.measure_ceilings", lambda device, dtype: ceilings)


def test_a_table(run: Run, tiny: Path, book: Path) -> None:
    done = run("bench", tiny, "--book", book, *SHORT)
    assert done.code == 0
    assert "123 GFLOP/s of float32 products, 45.6 GB/s read" in done.out
    assert "times over" in done.out
    rows = [line.split() for line in done.out.splitlines() if line.strip().startswith(("100 ", "300 "))]
    assert [len(row) for row in rows] == [12, 12]
    assert "From 100 to 300 tokens, reading time grows as the length to the power" in done.out
    assert all(len(line) <= 84 for line in done.out.splitlines() if line.startswith(("  text", "tokens")))


def test_an_object_for_programs(run: Run, tiny: Path, book: Path) -> None:
    said = json.loads(run("bench", tiny, "--book", book, *SHORT, "--kv-storage", "int8", "--json").out)
    assert said["machine"]["flop_per_s"] == 123e9
    assert (said["kv_storage"], said["epsilon"], said["ended_by"]) == ("int8", 1e-6, "end")
    first, last = said["rows"]
    assert (first["num_tokens"], last["num_tokens"]) == (100, 300)
    assert 0 < first["read_s"] < last["read_s"] < last["first_token_s"]
    assert last["tokens_per_s"] == pytest.approx(300 / last["read_s"])
    assert last["mfu"] == pytest.approx(last["dense_flops"] / last["read_s"] / 123e9)
    assert last["mbu"] == pytest.approx(last["token_bytes"] / last["token_s"] / 45.6e9)
    assert 0 < last["share_visited"] <= 1
    assert last["bytes_dense_bf16"] == 3 * first["bytes_dense_bf16"] > 0
    assert last["peak_memory_bytes"] >= first["peak_memory_bytes"] > 0
    assert len(last["reach_tokens"]) == 2
    assert (said["growth"]["from_tokens"], said["growth"]["to_tokens"]) == (100, 300)


def test_the_bundled_model_by_default(run: Run) -> None:
    said = json.loads(run("bench", "--lengths", "20", "--new-tokens", 1, "--json").out)
    assert said["model"] == "epilogue-tiny, the bundled model"
    assert said["text"].startswith("A Life in Being")
    assert said["growth"] is None


def test_a_named_size_reads_random_tokens(run: Run, book: Path) -> None:
    done = run("bench", "tiny-3-heads", *SHORT, "--epsilon", 0, "--dtype", "bfloat16")
    assert done.code == 0
    assert "tiny-3-heads, random weights" in done.out
    assert "keys and values in bfloat16, epsilon 0; reads random tokens" in done.out
    assert "leave --book out" in run("bench", "tiny-3-heads", "--book", book).complaint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "8k,many"], "--lengths takes numbers of tokens such as 2k,8k,83968, got 'many'"),
        (["--lengths", ""], "got ''"),
        (["--lengths", "0"], "got '0'"),
        (["--lengths", "-5"], "got '-5'"),
        (["--lengths", "k"], "got 'k'"),
        (["--epsilon", 2], "--epsilon must be in [0, 1)"),
        (["--kv-storage", "int3"], "--kv-storage must be"),
        (["--device", "quantum"], "device 'quantum' is not on this machine"),
        (["--dtype", "float8"], "dtype must be"),
        (["--new-tokens", 0], "--new-tokens"),
        (["--book", "no such book.txt"], "there is no file"),
    ],
)
def test_refusals(run: Run, tiny: Path, options: list[object], said: str) -> None:
    assert said in run("bench", tiny, *options).complaint


def leave_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes))


def test_a_size_larger_than_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_memory(monkeypatch, 2**30)
    assert "the weights of mpt-30b take" in run("bench", "mpt-30b").complaint


def test_lengths_that_do_not_fit(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_memory(monkeypatch, 4 * 2**20)
    monkeypatch.setattr(Engine, "_read", lambda *_: pytest.fail("reading had begun"))
    assert "tokens would fit" in run("bench", tiny, "--lengths", "100,64k").complaint


def test_positions_end(run: Run, with_positions: Path) -> None:
    assert "more than the 64 positions" in run("bench", with_positions, "--lengths", "30,64").complaint
    assert run("bench", with_positions, "--lengths", "20,30", "--new-tokens", 1).code == 0


@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_keeps_the_rows(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    interrupt(monkeypatch, "reading", at=300)
    done = run("bench", tiny, *SHORT, *(["--json"] if as_json else []))
    assert done.code == 130
    assert "stopped after 1 of 2 lengths" in done.err
    if as_json:
        said = json.loads(done.out)
        assert (said["ended_by"], len(said["rows"]), said["growth"]) == ("interrupt", 1, None)
    else:
        assert "MFU" in done.out


def test_ctrl_c_before_the_first_row(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "reading", at=1)
    done = run("bench", tiny, *SHORT)
    assert (done.code, done.out) == (130, "")
    assert "stopped after 0 of 2 lengths" in done.err


@needs_posix
def test_a_process(tiny: Path) -> None:
    process = start("bench", tiny, *SHORT, "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    said = json.loads(out)
    assert said["machine"]["flop_per_s"] > 0
    assert [row["num_tokens"] for row in said["rows"]] == [100, 300]


def test_lengths() -> None:
    assert parse_lengths("8k, 2K,100,2048", option="--lengths") == [100, 2048, 8192]
    assert max(parse_lengths("82k", option="--lengths")) == 83968
