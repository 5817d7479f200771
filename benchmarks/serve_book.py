"""A writer's day with `epilogue serve` and one book: seconds from a request to its first token, over HTTP.

    python -m benchmarks.serve_book --book novel.txt

The server is a process of its own with an empty folder for states. The book is asked for the first time, again, with a
sentence near its end changed, after Ctrl-C and a restart, and after a kill -9 and another restart. While its state is
being written another text is written, whose longest pause is told beside that of a quiet time. Of "again", the restarts
and the quiet pause the least of three is told. Ends with one JSON line.
"""

import argparse
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import finish, machine_card, require_green
from epilogue.text import read_book

RESTARTS = 3
BUNDLED = Path(str(files("epilogue"))) / "bundled"


class Server:
    """A process that serves, until it is stopped."""

    def __init__(self, states: Path, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "epilogue", "serve", "--port", "0", "--states", str(states), *arguments]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        while "Ctrl-C stops" not in (line := self.process.stderr.readline()):
            if not line:
                sys.exit("the server ended before it listened")
        place = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert place is not None
        self.port = int(place[1])
        self.start_s = time.perf_counter() - start

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        connection.request(method, path, json.dumps(body) if body else None)
        return connection.getresponse()

    def json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return json.load(self.ask(method, path, body))

    def tokens(self, prompt: str, num_tokens: int) -> Iterator[float]:
        """The time from the request to every token, as each comes."""
        body = {"prompt": prompt, "max_length": num_tokens, "sampler_seed": 1, "bypass_eos": True}
        start = time.perf_counter()
        for line in self.ask("POST", "/api/extra/generate/stream", body):
            if line.startswith(b"data: ") and json.loads(line[6:])["token"]:
                yield time.perf_counter() - start

    def first_token(self, prompt: str) -> float:
        """Seconds until there is one."""
        first_s, *_ = self.tokens(prompt, 2)
        return round(first_s, 3)

    def wait_for_state(self) -> None:
        while not all(
            book["on_disk"] and not book["saving"]
            for book in self.json("GET", "/epilogue/v1/books")["books"]
            if book["tokens"] >= 2048
        ):
            time.sleep(0.1)

    def stop(self, how: signal.Signals) -> float:
        start = time.perf_counter()
        self.process.send_signal(how)
        self.process.wait()
        return round(time.perf_counter() - start, 3)


def longest_pause(server: Server, num_tokens: int) -> float:
    """Seconds between two tokens of a short text."""
    times = list(server.tokens("The wind went round to the north.", num_tokens))
    return round(max(later - earlier for earlier, later in pairwise(times)), 3)


def changed(text: str) -> str:
    """The same with a sentence more, some hundred words before the end."""
    place = text.rindex(". ", 0, len(text) - 2000) + 2
    return text[:place] + "It had not been raining at all that night, whatever they said. " + text[place:]


def measure(text: str, arguments: list[str], states: Path) -> dict[str, Any]:
    server = Server(states, arguments)
    rows = {"first": server.first_token(text)}
    rows["again"] = min(server.first_token(text) for _ in range(3))
    rows["a sentence changed"] = server.first_token(changed(text))
    server.wait_for_state()
    pauses = {"quiet_s": min(longest_pause(server, 100) for _ in range(3))}
    book = max(server.json("GET", "/epilogue/v1/books")["books"], key=lambda row: row["tokens"])
    with ThreadPoolExecutor(1) as beside:
        saving = beside.submit(server.json, "POST", f"/epilogue/v1/books/{book['id']}/save")
        pauses["while_saving_s"] = longest_pause(server, 100)
        saving.result()
    stop_s = server.stop(signal.SIGINT)
    restarts: dict[str, list[float]] = {"after Ctrl-C": [], "after kill -9": []}
    for _ in range(RESTARTS):
        for what, how in zip(restarts, (signal.SIGKILL, signal.SIGINT), strict=True):
            server = Server(states, arguments)
            restarts[what].append(server.first_token(text))
            server.stop(how)
    rows |= {what: min(seconds) for what, seconds in restarts.items()}
    sizes = [path.stat().st_size for path in states.iterdir()]
    return {"num_tokens": book["tokens"], "first_token_s": rows, "restarts": restarts, "longest_pause": pauses} | {
        "state_bytes": sizes,
        "start_s": round(server.start_s, 2),
        "stop_s": stop_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", default=BUNDLED / "a-life-in-being.txt")
    parser.add_argument("arguments", nargs="*", help="of epilogue serve, behind --")
    args = parser.parse_args()
    require_green(["tests/server/test_books.py"])
    card = machine_card()
    print(card)
    with TemporaryDirectory() as states:
        results = measure(read_book(args.book).text, args.arguments, Path(states))
    for what, seconds in results["first_token_s"].items():
        print(f"{what:20} {seconds:8.2f} s to the first token")
    finish({"machine": card, **results})


if __name__ == "__main__":
    main()
