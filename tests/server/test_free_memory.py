"""Memory that was freed goes back to the system, also where what is kept lies behind it."""

import platform
from collections.abc import Callable

import psutil
import pytest
import torch

from epilogue.server import Worker, free_memory
from epilogue.server.free_memory import give_back_free_memory
from epilogue.server.protocol import Done
from server.material import PROMPT, Heard, asked

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked")


@only_glibc
def test_holes_between_what_is_kept_are_given_back() -> None:
    pieces = [torch.ones(16 * 1024) for _ in range(2_000)]  # 64 KiB each: of the heap, not mapped alone
    pieces = pieces[::20]  # all of the heap lies below something that is kept
    before = psutil.Process().memory_info().rss
    assert give_back_free_memory()
    given_back = before - psutil.Process().memory_info().rss
    assert given_back > 80 * 2**20
    assert all(bool((piece == 1).all()) for piece in pieces)


def test_a_server_at_work_gives_back(work: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[bool] = []
    monkeypatch.setattr(free_memory, "GIVE_BACK_EVERY_S", 0.0)
    monkeypatch.setattr(free_memory, "give_back_free_memory", lambda: asked_for.append(True))
    listener = Heard()
    work().submit(asked(PROMPT, tokens=4), listener)
    listener.wait(Done)
    assert asked_for
