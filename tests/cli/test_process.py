"""The command as a process of its own: signals, pipes and a terminal, which no call in this one can show."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.material import BOOK

COMMAND = [sys.executable, "-m", "epilogue"]
# The likeliest tokens of this model go on for thousands; drawn ones may end the story before a signal comes.
ENDLESS = ("--max-new-tokens", 30_000, "--temperature", 0, "--repetition-penalty", 1)
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and pseudo-terminals of POSIX")


def start(*arguments: object) -> "subprocess.Popen[bytes]":
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_refusal() -> None:
    process = start("write", "no such book.txt")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"epilogue: there is no file no such book.txt;")
    assert err.count(b"\n") == 1


@needs_posix
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c(tiny: Path, book: Path) -> None:
    process = start("write", book, "--model", tiny, *ENDLESS)
    assert process.stdout is not None
    first = process.stdout.read(1)  # the story has begun
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (first + rest).endswith(b"\n")
    assert b"s a token" in err
    assert b"Traceback" not in err


@needs_posix
def test_a_reader_that_goes_away(tiny: Path, book: Path) -> None:
    process = start("write", book, "--model", tiny, *ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) != 0
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


@needs_posix
def test_a_terminal(tiny: Path, book: Path) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [*COMMAND, "write", str(book), "--model", str(tiny), "--max-new-tokens", "5"])
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, shown
    for part in (b"The Pier by A. Sea", b"reading", b"EPILOGUE\r\n", b"wrote "):
        assert part in shown, BOOK
