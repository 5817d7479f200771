"""Where else a run's numbers go: TensorBoard, Weights & Biases, MLflow. Each is an extra, and an option of the recipe.

log.jsonl in the run's folder is always written, and nothing here is ever read back.
"""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from epilogue.errors import RecipeError
from epilogue.train.recipe import Recipe

_PROJECT = "epilogue"


class Tracker(Protocol):
    """Takes numbers by name."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Of one step."""

    def close(self) -> None:
        """What was logged is kept from here on."""


class TensorBoard:
    """Event files in ``OUT/tensorboard``; what a resumed run does again replaces what was there."""

    def __init__(self, recipe: Recipe, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(Path(recipe.out) / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project epilogue, named like the run's folder and with the recipe as its configuration."""

    def __init__(self, recipe: Recipe, step: int) -> None:
        import wandb

        self._run: Any = wandb.init(project=_PROJECT, name=Path(recipe.out).name, dir=recipe.out, config=asdict(recipe))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step's numbers together."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


class MLflow:
    """A run of the experiment epilogue, at the server that MLFLOW_TRACKING_URI names or in MLflow's own place."""

    def __init__(self, recipe: Recipe, step: int) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(_PROJECT)
        mlflow.start_run(run_name=Path(recipe.out).name)
        mlflow.log_dict(asdict(recipe), "recipe.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """A metric each."""
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        """End the run there."""
        self._mlflow.end_run()


_TRACKERS: dict[str, type[TensorBoard | WeightsAndBiases | MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def require_trackers(recipe: Recipe) -> None:
    """Refuse a recipe that wants a tracker which is not installed.

    Raises:
        RecipeError: naming the extra.
    """
    for name in _wanted(recipe):
        if find_spec(name) is None:
            raise RecipeError(
                f"the recipe has {name}: true, and {name} is not installed; pip install 'epilogue[{name}]', or leave "
                "it out"
            )


def open_trackers(recipe: Recipe, *, step: int) -> list[Tracker]:
    """The trackers of a recipe, for a run that goes on behind ``step``."""
    return [_TRACKERS[name](recipe, step) for name in _wanted(recipe)]


def _wanted(recipe: Recipe) -> list[str]:
    return [name for name in _TRACKERS if getattr(recipe, name)]
