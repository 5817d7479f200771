"""Many writers at once: `epilogue serve` with the bundled model, loaded over HTTP for two minutes.

    python -m benchmarks.serve_load --clients 32 --seconds 120

The server is a process of its own. The clients do what front ends do (``benchmarks.writers``), each one thing over
and over: Kobold and OpenAI requests, streamed and whole, counting of tokens, long books whose end grows, writers who
leave in the middle or press abort; all come again when a 503 says. Told by kind: requests done, 503s, any other error,
seconds to the first token and from token to token, and the longest that anybody waited with nothing; and of the server,
tokens a second, memory over time and how fast it grows behind the first half, and pages held when all books have been
removed. Ends with one JSON line, and with status 1 if there was an error, a client that nothing was done for, or a page
left over.
"""

import argparse
import asyncio
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.serve_book import BUNDLED, Server
from benchmarks.writers import MIX, Visit, Writer
from epilogue.checkpoint import load_config
from epilogue.model import page_bytes
from epilogue.text import read_book

FloatArray = NDArray[np.float64]
COUNTED = ("read", "cached", "written")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """In seconds."""
    if not values:
        return {}
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (50, 90, 99, 100)}


def figures(server: Server) -> dict[str, float]:
    """What /metrics tells."""
    lines = server.ask("GET", "/metrics").read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def by_kind(visits: Sequence[Visit]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, list[Visit]] = defaultdict(list)
    for visit in visits:
        kinds[visit.kind].append(visit)
    return {
        kind: {
            "done": sum(visit.error is None for visit in mine),
            "refused_503": sum(visit.num_refused for visit in mine),
            "errors": sorted({visit.error for visit in mine if visit.error}),
            "first_token_s": percentiles([visit.first_s for visit in mine if visit.first_s is not None]),
            "between_tokens_s": percentiles([gap for visit in mine for gap in visit.gaps_s]),
            "longest_wait_s": round(max(visit.longest_wait_s for visit in mine), 3),
        }
        for kind, mine in sorted(kinds.items())
    }


class Memory:
    """The server's resident memory, every second, and how much of it is pages: these are filled until as many books
    are open as may be, and stay the process's when they are given back.
    """

    def __init__(self, server: Server) -> None:
        self._server, self._process = server, psutil.Process(server.process.pid)
        self._page_mib = page_bytes(load_config(BUNDLED / "epilogue-tiny"), "float32") / 2**20
        self._over = threading.Event()
        self.samples: list[tuple[float, float, float]] = []
        """Seconds, MiB, and MiB without the most pages that were ever held."""
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        start, most_pages = time.monotonic(), 0.0
        while not self._over.wait(1.0):
            most_pages = max(most_pages, figures(self._server)["epilogue_held_pages"])
            rss_mib = self._process.memory_info().rss / 2**20
            self.samples.append((time.monotonic() - start, rss_mib, rss_mib - most_pages * self._page_mib))

    def stop(self) -> dict[str, Any]:
        self._over.set()
        self._thread.join()
        later = np.array(self.samples[len(self.samples) // 2 :])

        def growth(mib: FloatArray) -> float:
            return round(60 * float(np.polyfit(later[:, 0], mib, 1)[0]), 2)

        every = max(1, len(self.samples) // 24)
        return {
            "over_time": [(round(s), round(mib), round(rest)) for s, mib, rest in self.samples[::every]],
            "most": round(max(mib for _, mib, _ in self.samples)),
            "second_half_growth_a_minute": growth(later[:, 1]),
            "second_half_growth_a_minute_without_pages": growth(later[:, 2]),
        }


async def load(port: int, text: str, *, num_clients: int, seconds: float) -> list[Visit]:
    """Everything that was asked for, in the order in which it ended."""
    visits: list[Visit] = []
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as http:
        writers = [Writer(http, number, MIX[number % len(MIX)], text, visits) for number in range(num_clients)]
        until_s = time.monotonic() + seconds
        await asyncio.gather(*(writer.work(until_s) for writer in writers))
    return visits


def wait_until_idle(server: Server, *, at_most_s: float = 60) -> None:
    start = time.monotonic()
    while time.monotonic() - start < at_most_s:
        now = figures(server)
        if not now["epilogue_active_requests"] + now["epilogue_waiting_requests"]:
            return
        time.sleep(0.2)


def remove_books(server: Server) -> None:
    for book in server.json("GET", "/epilogue/v1/books")["books"]:
        server.ask("DELETE", f"/epilogue/v1/books/{book['id']}").read()


def measure(text: str, states: Path, args: argparse.Namespace) -> dict[str, Any]:
    server = Server(states, args.arguments)
    said: list[str] = []
    assert server.process.stderr is not None
    listening = threading.Thread(target=said.extend, args=(server.process.stderr,))
    listening.start()
    before, memory, start = figures(server), Memory(server), time.monotonic()
    visits = asyncio.run(load(server.port, text, num_clients=args.clients, seconds=args.seconds))
    wait_until_idle(server)
    seconds, rss = time.monotonic() - start, memory.stop()
    after = figures(server)
    remove_books(server)
    end = figures(server)
    stop_s = server.stop(signal.SIGINT)
    listening.join()
    done = Counter(visit.client for visit in visits if visit.error is None)
    grown = {name: after[f"epilogue_{name}_tokens_total"] - before[f"epilogue_{name}_tokens_total"] for name in COUNTED}
    return {
        "clients": args.clients,
        "seconds": round(seconds, 1),
        "kinds": by_kind(visits),
        "starved_clients": [number for number in range(args.clients) if not done[number]],
        "least_done_by_a_client": min(done[number] for number in range(args.clients)),
        "tokens": {name: int(number) for name, number in grown.items()},
        "written_tokens_a_second": round(grown["written"] / seconds, 1),
        "rss_mib": rss,
        "held_pages": {
            "before": int(before["epilogue_held_pages"]),
            "under load": int(after["epilogue_held_pages"]),
            "books removed": int(end["epilogue_held_pages"]),
        },
        "open_books_at_the_end": int(end["epilogue_open_books"]),
        "server_said": [re.sub(r"\s+", " ", line)[:200] for line in said][-20:],
        "stop_s": stop_s,
    }


def tell(results: dict[str, Any]) -> None:
    print(
        f"{'':22} {'done':>5} {'503':>4} {'first token p50':>15} {'p99':>7} {'a token p50':>11} {'p99':>7} {'wait':>7}"
    )
    for kind, row in results["kinds"].items():
        first, gap = row["first_token_s"], row["between_tokens_s"]
        seconds = [f"{part[share]:.3f}" if part else "" for part in (first, gap) for share in ("p50", "p99")]
        print(
            f"{kind:22} {row['done']:5} {row['refused_503']:4} {seconds[0]:>15} {seconds[1]:>7} {seconds[2]:>11}"
            f" {seconds[3]:>7} {row['longest_wait_s']:7.2f}"
        )
        for error in row["errors"]:
            print(f"    {error}")
    print({name: results[name] for name in results if name != "kinds"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=len(MIX))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--book", default=BUNDLED / "a-life-in-being.txt", help="what stories begin with")
    parser.add_argument("--json", action="store_true", help="print nothing but the last line")
    parser.add_argument("arguments", nargs="*", help="of epilogue serve, behind --")
    args = parser.parse_args()
    require_green(["tests/server/test_worker.py"])
    card = machine_card()
    with TemporaryDirectory() as states:
        results = measure(read_book(args.book).text, Path(states), args)
    if not args.json:
        print(card)
        tell(results)
    finish({"machine": card, **results})
    has_errors = any(row["errors"] for row in results["kinds"].values())
    pages = results["held_pages"]
    sys.exit(int(has_errors or bool(results["starved_clients"]) or pages["books removed"] != pages["before"]))


if __name__ == "__main__":
    main()
