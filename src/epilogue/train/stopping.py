"""SIGTERM and Ctrl-C while a run goes on: in effect between two pieces of work, in all processes at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from epilogue.train.mesh import Mesh

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C: it may come in the middle of a step, whose weights are no step's then."""


class StopRequests:
    """What has asked this process, or another one of the run, to stop."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._came = 0

    def check(self) -> None:
        """Stop here if any process has been asked to; all must call this at the same places.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: SIGTERM, with code 0.
        """
        came = self._mesh.highest(self._came)
        if came:
            self._came = 0
            raise SystemExit(0) if came == signal.SIGTERM else KeyboardInterrupt

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within the block signals are noted for ``check``; a second Ctrl-C raises ``StoppedAtOnce`` where it comes.

        Signals that the process ignores stay ignored. In another thread than the main one this does nothing: Python
        handles signals in the main one only.
        """
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                for number in _SIGNALS:
                    previous = signal.getsignal(number)
                    if previous not in (signal.SIG_IGN, None):
                        signal.signal(number, self._note)
                        stack.callback(signal.signal, number, previous)
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self._came:
            raise StoppedAtOnce
        self._came = max(self._came, number)
