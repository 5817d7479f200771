"""Who runs the stages: this machine, a Slurm cluster or a Ray cluster, through datatrove's executors."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epilogue.corpus.extra import require
from epilogue.errors import BookError

KINDS = ("local", "slurm", "ray")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the stages run.

    Attributes:
        kind: "local", "slurm" or "ray".
        workers: tasks at the same time.
        partition: of a Slurm cluster.
        time_limit: of a Slurm job, as HH:MM:SS.
    """

    kind: str = "local"
    workers: int = 1
    partition: str = ""
    time_limit: str = "12:00:00"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the executor is {self.kind!r}, wanted {', '.join(KINDS)}")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}, wanted at least 1")
        if self.kind == "slurm" and not self.partition:
            raise ValueError("a Slurm cluster needs the name of a partition")


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: datatrove steps, and on how many tasks."""

    name: str
    steps: Sequence[Any]
    num_tasks: int


def require_cluster(cluster: Cluster) -> None:
    """Find out before anything is read whether the executor can run.

    Raises:
        BookError: datatrove, Ray or Slurm is not installed.
    """
    require("datatrove.executor", purpose="selecting books")
    if cluster.kind == "ray":
        require("ray", purpose="--executor ray", extra="")
    if cluster.kind == "slurm" and shutil.which("sbatch") is None:
        raise BookError("--executor slurm needs Slurm, and there is no sbatch here; run it where jobs are submitted")


def make_executors(stages: Sequence[StagePlan], cluster: Cluster, logs: Path) -> list[Any]:
    """A datatrove executor for each stage; on Slurm each waits for the one before it."""
    executors: list[Any] = []
    for stage in stages:
        shared = {"pipeline": list(stage.steps), "tasks": stage.num_tasks, "logging_dir": str(logs / stage.name)}
        executors.append(_executor(shared, stage, cluster, executors[-1] if executors else None))
    return executors


def _executor(shared: dict[str, Any], stage: StagePlan, cluster: Cluster, before: Any) -> Any:
    from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor

    from epilogue.corpus.local_executor import QuietLocalExecutor

    workers = min(cluster.workers, stage.num_tasks)
    if cluster.kind == "slurm":
        return SlurmPipelineExecutor(
            **shared,
            workers=cluster.workers,
            time=cluster.time_limit,
            partition=cluster.partition,
            job_name=f"epilogue-{stage.name}",
            depends=before,
            mail_type="NONE",
            slurm_logs_folder=f"{shared['logging_dir']}/slurm",
        )
    kind = RayPipelineExecutor if cluster.kind == "ray" else QuietLocalExecutor
    return kind(**shared, workers=workers)


def run_stages(stages: Sequence[StagePlan], cluster: Cluster, logs: Path, on_stage: Callable[[str, int], None]) -> None:
    """Run all stages, calling ``on_stage`` before each with its name and tasks; on Slurm submit them and come back.

    Raises:
        BookError: a source turned out to be missing or damaged.
    """
    executors = make_executors(stages, cluster, logs)
    if cluster.kind == "slurm":
        executors[-1].run()  # submits what it depends on first
        return
    for stage, executor in zip(stages, executors, strict=True):
        on_stage(stage.name, stage.num_tasks)
        executor.run()
