"""Parts of a recipe that most runs leave out: stages, memory, processes, adapters."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from epilogue.errors import RecipeError

LORA_TARGETS = ("Wqkv", "out_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """What changes at a step and stays so; null for what does not change."""

    from_step: int
    """The first step of the stage, counted from 0."""
    context_tokens: int | None = None
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None
    alibi_bias_max: float | None = None
    bias_ramp_steps: int = 0
    """Steps in which alibi_bias_max moves to its new value, linearly; 0 for at once."""
    learning_rate: float | None = None
    """A peak of its own: the schedule begins anew here, with a warm-up, and ends where the next such stage begins."""
    warmup_steps: int | None = None
    """Of the schedule that begins here; the recipe's if null."""
    cooldown_share: float | None = None
    """As warmup_steps."""

    def __post_init__(self) -> None:
        where = "stages."
        require(self, where, "from_step", "at least 1", lambda x: x >= 1)
        require(self, where, "bias_ramp_steps", "0 or more", lambda x: x >= 0)
        require(self, where, "context_tokens batch_tokens micro_batch_tokens", "at least 1", _optional(1, math.inf))
        require(self, where, "warmup_steps", "0 or more", _optional(0, math.inf))
        require(self, where, "cooldown_share", "from 0 to 1", _optional(0, 1))
        require(self, where, "alibi_bias_max learning_rate", "above 0", _optional(1e-30, math.inf))
        if self.learning_rate is None and (self.warmup_steps, self.cooldown_share) != (None, None):
            raise RecipeError(
                f"the stage from step {self.from_step} has a warmup_steps or cooldown_share and no learning_rate, "
                "without which no schedule begins there; add it"
            )


@dataclass(frozen=True, kw_only=True)
class MemoryRecipe:
    """What long contexts are trained with. No effect on what is learned but rounding."""

    checkpointing: Literal["none", "selective", "full"] = "none"
    """full: of every block only the stream that enters is kept and the rest is made again on the way back; selective:
    attention's results are kept as well, so that it runs once."""
    mlp_tile_tokens: int | None = None
    """With checkpointing: tokens of a sequence that go through the feed-forward at once; all if null."""
    offload: bool = False
    """Keep on the host what waits for the way back."""

    def __post_init__(self) -> None:
        require(self, "memory.", "mlp_tile_tokens", "at least 1", _optional(1, math.inf))
        if self.mlp_tile_tokens is not None and self.checkpointing == "none":
            raise RecipeError("memory.mlp_tile_tokens needs memory.checkpointing selective or full, got none")


@dataclass(frozen=True, kw_only=True)
class ParallelRecipe:
    """How the processes that torchrun starts divide the work; their product is their number."""

    replicate: int = 1
    """Groups of processes that hold all weights each and read different sequences (HSDP)."""
    shard: int = 0
    """Processes of a group that read different sequences; 0 for as many as the other two leave. Weights and optimizer
    state lie in parts over all processes of a group (FSDP)."""
    context: int = 1
    """Processes that hold a part of each sequence, and in attention a part of the heads."""

    def __post_init__(self) -> None:
        require(self, "parallel.", "replicate context", "at least 1", lambda x: x >= 1)
        require(self, "parallel.", "shard", "0 or more", lambda x: x >= 0)


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) beside frozen weights, dense or quantised."""

    rank: int = 16
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Of the adapter's input."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Layers of every block that get one."""

    def __post_init__(self) -> None:
        require(self, "lora.", "rank", "at least 1", lambda x: x >= 1)
        require(self, "lora.", "alpha", "above 0", lambda x: 0 < x < math.inf)
        require(self, "lora.", "dropout", "in [0, 1)", lambda x: 0 <= x < 1)
        if not self.targets or not set(self.targets) <= set(LORA_TARGETS):
            raise RecipeError(f"lora.targets is {list(self.targets)}, wanted some of {', '.join(LORA_TARGETS)}")


def require(settings: Any, where: str, names: str, wanted: str, fits: Any) -> None:
    """Refuse settings with a value that does not fit.

    Raises:
        RecipeError: which, and what it should be.
    """
    for name in names.split():
        value = getattr(settings, name)
        if not fits(value):
            raise RecipeError(f"{where}{name} must be {wanted}, got {value}")


def _optional(least: float, most: float) -> Any:
    return lambda x: x is None or least <= x <= most
