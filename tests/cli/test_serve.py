"""`epilogue serve` as a process on a free port, and what it refuses."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cli.material import Run


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::"])
def test_other_machines_need_a_key(run: Run, tiny: Path, host: str) -> None:
    complaint = run("serve", "--model", tiny, "--host", host).complaint
    assert f"--host {host} lets other machines in; give --api-key KEY, or --insecure" in complaint


def test_a_model_that_is_not_there(run: Run) -> None:
    assert "nowhere" in run("serve", "--model", "./nowhere").complaint


def test_a_port_that_is_taken(run: Run, tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in run("serve", "--model", tiny, "--port", port).complaint


def test_it_serves_until_it_is_stopped(tiny: Path) -> None:
    command = [sys.executable, "-m", "epilogue", "serve", "--model", str(tiny), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "Ctrl-C stops" not in (line := process.stderr.readline()):
            assert line, "it ended"
        place = line.split()[4].rstrip(",")
        body = json.dumps({"prompt": "The wind", "max_length": 4, "sampler_seed": 1}).encode()
        with urllib.request.urlopen(f"{place}/api/v1/generate", body, timeout=60) as answer:
            assert len(json.load(answer)["results"]) == 1
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode in (0, 130), talk
    assert "Traceback" not in talk
    assert "The wind" not in talk
