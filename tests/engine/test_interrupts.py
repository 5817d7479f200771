"""An interruption on any line of the engine: every text is usable, no page is lost, and the tokens stay the same."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from engine.invariants import check
from epilogue import engine as package
from epilogue.engine import Engine, SamplingParams, Sequence
from epilogue.engine.answers import Answer
from epilogue.model import MPT, page_pool

PARAMS = SamplingParams(temperature=1.5, seed=1, max_new_tokens=6)
FILES = {str(path) for path in Path(package.__file__).parent.glob("*.py")} | {page_pool.__file__}
LEAST = 12  # interruptions of each request


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


class Scene:
    """Two texts that share pages, one of them being written, both at the end of a page."""

    def __init__(self, model: MPT) -> None:
        self.book = torch.randint(0, 61, (270,), generator=torch.Generator().manual_seed(4)).tolist()
        self.engine = Engine(model, num_pages=60, epsilon=1e-3, chunk_tokens=60, undo_tokens=0, spacings=(128,))
        self.text = self.engine.open_book(self.book[:254])
        self.twin = self.engine.fork(self.text)
        self.writing = self.engine.stream(self.twin, PARAMS)
        next(self.writing)

    def expected_V(self, ids: list[int]) -> torch.Tensor:
        return Engine(self.engine.model, num_pages=60, epsilon=0).open_book(ids).logits_V


REQUESTS: dict[str, Callable[[Scene], Any]] = {
    "open": lambda scene: scene.engine.open_book(scene.book[:200] + [1] * 100),
    "append": lambda scene: scene.engine.append(scene.text, scene.book[254:]),
    "fork": lambda scene: scene.engine.fork(scene.text),
    "truncate": lambda scene: scene.engine.truncate(scene.text, 120),
    "truncate a little": lambda scene: scene.engine.truncate(scene.text, 253),
    "stream": lambda scene: list(scene.writing),
    "score": lambda scene: scene.engine.score(scene.book[:5], after=scene.text),
    "close": lambda scene: scene.engine.close(scene.text),
}


def interrupted(run: Callable[[], Any], line: int | None) -> int:
    """Raise at so many lines of the engine from here; how many there were."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(("name", "is_late"), [(name, False) for name in REQUESTS] + [("open", True), ("append", True)])
def test_any_line(tiny_mpt, monkeypatch, name: str, is_late: bool) -> None:
    """Also of a device whose answers come later."""
    monkeypatch.setattr(Answer, "is_here", not is_late)
    model = tiny_mpt(n_heads=1, n_layers=1, attn_config={"alibi_bias_max": 2}).double()
    request = REQUESTS[name]
    calm = Scene(model)
    total = interrupted(lambda: request(calm), None)
    assert total > 15
    for line in range(1, total + 1, max(1, total // LEAST)):
        scene = Scene(model)
        before = {scene.text: list(scene.text.ids), scene.twin: list(scene.twin.ids)}
        interrupted(lambda scene=scene: request(scene), line)
        scene.writing.close()
        scene.writing = iter(())
        check(scene.engine)
        for text, ids in before.items():
            if not text.is_closed:
                assert text.ids[: len(ids)] == ids or (name.startswith("truncate") and ids[: len(text.ids)] == text.ids)
                go_on(scene, text)
            else:
                scene.engine.close(text)  # half closed is closed again
        check(scene.engine)
        for text in before:
            scene.engine.close(text)
        assert scene.engine.pages.num_held == 0, line


def go_on(scene: Scene, text: Sequence) -> None:
    engine = scene.engine
    engine.append(text, [])
    expected_V = scene.expected_V(text.ids)
    assert (text.logits_V - expected_V).abs().max() <= 0.02 * expected_V.abs().max()
    list(engine.stream(engine.fork(text), replace(PARAMS, max_new_tokens=3)))
    again = engine.open_book([*text.ids, 1])
    expected_V = scene.expected_V(again.ids)
    assert (again.logits_V - expected_V).abs().max() <= 0.02 * expected_V.abs().max()
