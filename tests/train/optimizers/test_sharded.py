"""Two processes, each with half of every tensor's rows, take the steps of one, and their state can be put together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, str(WORKER), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", ["lion", "lion 8 bits", "adamw", "adamw 8 bits", "muon", "lion bf16"])
def test_two_halves_step_like_the_whole(report: dict[str, dict[str, bool]], name: str) -> None:
    assert report[name]["weights"]


@pytest.mark.parametrize("name", ["lion", "lion 8 bits", "adamw 8 bits", "lion bf16"])
def test_states_are_laid_out_like_their_weights(report: dict[str, dict[str, bool]], name: str) -> None:
    assert report[name]["states"]
