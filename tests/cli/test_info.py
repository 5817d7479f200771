"""`epilogue info`, and what holds for the command as a whole."""

import json
from pathlib import Path

import pytest

import epilogue
from cli.material import Run


def test_the_bundled_model_by_default(run: Run) -> None:
    done = run("info")
    assert done.code == 0
    assert "epilogue-tiny, the bundled model" in done.out
    assert "65,536 tokens" in done.out
    assert not done.err


def test_a_named_size_needs_no_weights(run: Run) -> None:
    said = json.loads(run("info", "mpt-7b-storywriter", "--json").out)
    assert said["alibi_bias_max"] == 16
    assert said["clip_qkv"] == 6
    assert said["max_seq_len"] == 65536
    assert said["parameters"] == 6_649_286_656


def test_a_folder(run: Run, tiny: Path) -> None:
    assert "2 layers, 4 heads of 16, d_model 64" in run("info", tiny).out


def test_learned_positions_end(run: Run, with_positions: Path) -> None:
    assert "reads nothing longer" in run("info", with_positions).out
    assert json.loads(run("info", with_positions, "--json").out)["read_flops"] == {}


def test_no_such_model(run: Run, tmp_path: Path) -> None:
    assert "has no config.json" in run("info", tmp_path).complaint
    assert "check the spelling" in run("info", "mpt-8b").complaint


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("write", "-h"), ("prepare", "--help"), ("shards",)])
def test_help(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 0
    assert done.out.startswith("Usage: epilogue")


def test_version(run: Run) -> None:
    assert run("--version").out == f"epilogue {epilogue.__version__}\n"
