"""A run's numbers go where its recipe says, and a tracker that is not installed is refused before anything is done."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from epilogue.errors import RecipeError
from epilogue.train import Trainer, trackers
from train.material import tiny_recipe

NAMES = {"loss", "bits_per_byte", "tokens_per_s", "memory_bytes", "learning_rate"}


def test_tensorboard_has_every_step_once(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny_recipe(shards, tmp_path, steps=4, save_every_steps=2, tensorboard=True)
    with pytest.raises(ZeroDivisionError):
        Trainer(recipe).run(on_step=lambda progress: None if progress.step < 3 else 1 // 0)
    seen: list[float] = []
    Trainer(recipe).run(on_step=lambda progress: seen.append(round(progress.loss, 5)))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert NAMES | {"validation_bits_per_byte"} <= set(events.Tags()["scalars"])
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses[2:]] == pytest.approx(seen)


class Recorder(ModuleType):
    """Stands for a library: every call is written down, and gives the library itself."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> "Recorder":
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.mark.parametrize(("name", "log", "close"), [("wandb", "log", "finish"), ("mlflow", "log_metrics", "end_run")])
def test_the_others_get_every_step_and_are_closed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, log: str, close: str
) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setattr(trackers, "find_spec", lambda name: library)
    Trainer(tiny_recipe(shards, tmp_path, steps=2, **{name: True})).run()
    logged = [(arguments[0], named["step"]) for called, arguments, named in library.calls if called == log]
    assert [step for _, step in logged] == [1, 2, 2]
    assert logged[0][0].keys() == NAMES
    assert logged[2][0].keys() == {"validation_loss", "validation_bits_per_byte"}
    assert library.calls[-1][0] == close


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_one_that_is_not_installed_is_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"{name}: true, and .* pip install 'epilogue\[{name}\]'"):
        Trainer(tiny_recipe(shards, tmp_path / "run", **{name: True}))
    assert not (tmp_path / "run").exists()
