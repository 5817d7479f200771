"""The processes of a run, and how its work is laid out over them: replicate x shard x context."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from epilogue.errors import RecipeError
from epilogue.model import MPTConfig
from epilogue.train.recipe import Recipe
from epilogue.train.stages import Stage, Stages


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Where this process stands among those of the run. One that is alone has no groups and exchanges nothing.

    Neighbouring ranks share a sequence (context), then the parts of the weights (shard and context together), and
    groups of those hold copies of each other (replicate): the busier the traffic, the nearer the processes.
    """

    rank: int = 0
    replicate: int = 1
    """Groups that hold all weights each."""
    shard: int = 1
    """Processes of such a group that read different sequences."""
    context: int = 1
    """Processes that hold a part of each sequence."""
    weights: DeviceMesh | None = None
    """replicate x (shard * context), or the latter alone: how parameters lie."""
    context_group: dist.ProcessGroup | None = None
    """Processes with parts of the same sequences, in the order of the parts."""
    host_group: dist.ProcessGroup | None = None
    """All processes, for what is written to disk meanwhile."""

    @property
    def size(self) -> int:
        """Processes."""
        return self.replicate * self.shard * self.context

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: to people, logs and folders."""
        return self.rank == 0

    @property
    def num_readers(self) -> int:
        """How many ways a batch's sequences are dealt out."""
        return self.replicate * self.shard

    @property
    def reader(self) -> int:
        """Which of those shares is this process's."""
        return self.rank // self.context

    @property
    def part(self) -> int:
        """Which part of every sequence is this process's."""
        return self.rank % self.context

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def highest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return int(numbers)

    def as_first_says(self, word: str | None) -> str | None:
        """What the first process has here; others pass anything. All wait for it."""
        words = [word]
        if self.size > 1:
            dist.broadcast_object_list(words, src=0, device=torch.device("cpu"))
        return words[0]


def make_mesh(recipe: Recipe, config: MPTConfig, device: str) -> Mesh:
    """Lay the run out over the processes that have met.

    Raises:
        RecipeError: the run, or a stage of it, cannot be laid out so.
    """
    stages = Stages(recipe).all
    _check_context(recipe.parallel.context, config, stages)
    num_processes = dist.get_world_size() if dist.is_initialized() else 1
    replicate, shard, context = _sizes(recipe, num_processes)
    for stage in stages:
        if stage.batch_tokens % (stage.micro_batch_tokens * replicate * shard):
            raise RecipeError(
                f"batch_tokens {stage.batch_tokens} must be a multiple of micro_batch_tokens "
                f"{stage.micro_batch_tokens} times {replicate * shard}, the processes (or groups of them) that read "
                f"different sequences, also in the stage from step {stage.first_step}; change either"
            )
    if num_processes == 1:
        return Mesh()
    weights = init_device_mesh(device, (replicate, shard * context), mesh_dim_names=("replicate", "shard"))
    sequences = init_device_mesh(device, (replicate * shard, context), mesh_dim_names=("reader", "context"))
    return Mesh(
        rank=dist.get_rank(),
        replicate=replicate,
        shard=shard,
        context=context,
        weights=weights if replicate > 1 else weights["shard"],
        context_group=sequences["context"].get_group() if context > 1 else None,
        host_group=dist.new_group(backend="gloo"),
    )


def _sizes(recipe: Recipe, num_processes: int) -> tuple[int, int, int]:
    """How many processes each axis has; shard takes what the others leave if it is 0."""
    wanted = recipe.parallel
    shard = wanted.shard or num_processes // (wanted.replicate * wanted.context)
    if wanted.replicate * shard * wanted.context != num_processes:
        raise RecipeError(
            f"parallel asks for replicate {wanted.replicate} x shard {wanted.shard or 'any'} x context "
            f"{wanted.context} processes and there are {num_processes}; change parallel, or start as many with "
            "torchrun --nproc-per-node"
        )
    return wanted.replicate, shard, wanted.context


def _check_context(context: int, config: MPTConfig, stages: list[Stage]) -> None:
    if config.n_heads % context:
        raise RecipeError(
            f"parallel.context {context} does not divide the model's {config.n_heads} heads, of which every process "
            "computes as many; choose a divisor"
        )
    for stage in stages:
        if stage.context_tokens % context:
            raise RecipeError(
                f"parallel.context {context} does not divide context_tokens {stage.context_tokens} of the stage from "
                f"step {stage.first_step}, of which every process holds as many; change either"
            )
    if context > 1 and config.has_position_embedding:
        raise RecipeError(
            f"parallel.context is {context} and the model has learned positions, whose sequences are not split here; "
            "use ALiBi, or set parallel.context to 1"
        )
