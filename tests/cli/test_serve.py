"""`epilogue serve` as a process on a free port, and what it refuses."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.material import PARAGRAPH, Run
from epilogue.cli.serve import check_reach
from epilogue.engine import Library
from epilogue.errors import RequestError


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


@contextmanager
def serving(tiny: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    command = [sys.executable, "-m", "epilogue", "serve", "--model", str(tiny), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "Ctrl-C stops" not in (line := process.stderr.readline()):
                assert line, "it ended"
            host, _, port = line.split()[4].rstrip(",").removeprefix("http://").partition(":")
            assert host == "127.0.0.1"  # nothing else is listened on unless it is asked for
            with closing(http.client.HTTPConnection(host, int(port), timeout=60)) as door:
                yield process, door
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("how", "grace", "reason"), [(signal.SIGINT, "60", "length"), (signal.SIGTERM, "0", "stop")], ids=["finish", "cut"]
)
def test_a_server_that_is_stopped_ends_its_streams_and_leaves_whole_files(
    tiny: Path, tmp_path: Path, how: signal.Signals, grace: str, reason: str
) -> None:
    """With time to spare what is being written is finished; without, it ends with what there is, properly."""
    states, saves = tmp_path / "states", tmp_path / "saves"
    with serving(tiny, "--states", str(states), "--saves", str(saves), "--grace", grace, "--log") as (process, door):
        length = 300 if reason == "length" else 1_000_000
        body = {"prompt": PARAGRAPH * 150, "max_length": length, "bypass_eos": True, "sampler_seed": 1}
        door.request("POST", "/api/extra/generate/stream", json.dumps(body))
        with door.getresponse() as answer:
            first = answer.readline() + answer.readline()
            process.send_signal(how)
            rest = answer.read().decode()  # fails if the stream is broken off
        _, talk = process.communicate(timeout=60)
    events = [json.loads(line[6:]) for line in (first.decode() + rest).splitlines() if line.startswith("data: ")]
    assert [event["finish_reason"] for event in events if event["finish_reason"]] == [reason]
    assert process.returncode in (0, -how, 128 + how)
    lines = [json.loads(line) for line in talk.splitlines()]
    [work] = [line for line in lines if line["message"] == "work"]
    assert (work["outcome"], work["written_tokens"] == length) == (
        ("done", True) if reason == "length" else ("cancelled", False)
    )
    assert "nobody could see" not in talk
    assert [kept.header is not None for kept in Library(states, limit_bytes=2**30).all()] == [True]
    assert not [path for path in tmp_path.rglob(".*") if path.is_file() and path.suffix == ".partial"]


def test_other_machines_come_in_without_a_key_if_that_is_asked_for() -> None:
    here: dict[str, Any] = {"api_key": None, "is_insecure": False}
    for host, more in (("0.0.0.0", {"is_insecure": True}), ("0.0.0.0", {"api_key": "secret"}), ("127.0.0.1", {})):
        check_reach(host, **here | more)
    with pytest.raises(RequestError):
        check_reach("0.0.0.0", **here)
