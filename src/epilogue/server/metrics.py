"""Figures of a running server in Prometheus' format. No text of anybody's story is among them."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from epilogue.server.job import Job
from epilogue.server.worker import Worker

_PACES_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """Counts the requests of one worker; ``count`` is to be told how each has ended."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "epilogue_requests", "Requests by how they ended", ["outcome"], registry=self._registry
        )
        self._read = Counter("epilogue_read_tokens", "Tokens of prompts that were read", registry=self._registry)
        self._cached = Counter("epilogue_cached_tokens", "Tokens of prompts that were known", registry=self._registry)
        self._written = Counter("epilogue_written_tokens", "Tokens that were written", registry=self._registry)
        self._waited = Histogram(
            "epilogue_time_to_first_token_seconds",
            "From request to first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._paces = Histogram(
            "epilogue_time_per_output_token_seconds",
            "Of a request's continuations together, from token to token",
            buckets=_PACES_S,
            registry=self._registry,
        )
        self._registry.register(self)

    def count(self, job: Job, *, outcome: str) -> None:
        """Take in a request that has ended."""
        self._requests.labels(outcome).inc()
        self._cached.inc(job.num_cached_tokens)
        self._read.inc(job.num_read_tokens)
        self._written.inc(num_written := job.num_written_tokens)
        if job.first_token_s:
            self._waited.observe(job.first_token_s - job.created_s)
        if num_written > 1:
            self._paces.observe((time.monotonic() - job.first_token_s) / (num_written - 1))

    def collect(self) -> list[Metric]:
        """Figures of this moment."""
        pages = self._worker.engine.pages
        figures = {
            "epilogue_waiting_requests": ("Requests that wait to be taken up", self._worker.num_waiting),
            "epilogue_active_requests": ("Requests that are being read or written", self._worker.num_active),
            "epilogue_open_books": ("Texts kept open without a request", self._worker.num_books),
            "epilogue_tokens_per_second": ("What is being written now, all of it", self._tokens_per_second),
            "epilogue_pages": ("Pages of keys and values there is room for", pages.pool.num_pages),
            "epilogue_held_pages": ("Pages in use", self._worker.num_held_pages),
        }
        return [GaugeMetricFamily(name, text, value=value) for name, (text, value) in figures.items()]

    @property
    def _tokens_per_second(self) -> float:
        now, jobs = time.monotonic(), self._worker.jobs()
        return sum(job.num_written_tokens / (now - job.first_token_s) for job in jobs if job.num_written_tokens > 1)

    def exposition(self) -> bytes:
        """All of it, as text."""
        return generate_latest(self._registry)
