"""What a person sees of long work."""

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY_S = 10.0


class Watch:
    """A bar with the time left where stderr is a terminal; elsewhere a line every ten seconds, for whoever reads a log.

    Used as a context; the bar is gone when it is left.

    Args:
        console: writes to stderr.
        what: the work, as in "reading".
        unit: what is counted, in the plural.
        total: how many there are, None if nobody knows.
        done: how many were done before.
        is_shown: False keeps quiet.
    """

    def __init__(
        self, console: Console, what: str, *, unit: str, total: int | None = None, done: int = 0, is_shown: bool = True
    ) -> None:
        self._console, self.what, self._unit, self._total = console, what, unit, total
        self._is_logged = is_shown and not console.is_terminal
        self._start_s = self._said_s = monotonic()
        self._done_before = done
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn() if total is None else TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._bar.add_task(what, total=total, completed=done, count="")

    def __enter__(self) -> "Watch":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Say how far the work has come, and one more thing about it."""
        of = "" if self._total is None else f" of {self._total:,}"
        count = f"{done:,}{of} {self._unit}" + (f", {note}" if note else "")
        self._bar.update(self._task, completed=done, count=count)
        now_s = monotonic()
        if self._is_logged and now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            self._console.print(f"{self.what}: {count}{self._left(done, now_s)}", soft_wrap=True, markup=False)

    def _left(self, done: int, now_s: float) -> str:
        if self._total is None or done <= self._done_before:
            return ""
        left_s = (now_s - self._start_s) * (self._total - done) / (done - self._done_before)
        return f", about {left_s:,.0f} s left"
