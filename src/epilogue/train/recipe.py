"""What a training run is: frozen settings that are checked when they are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from epilogue.errors import CheckpointError, RecipeError
from epilogue.model import NAMED_SIZES, MPTConfig, config_from_dict, config_to_dict


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What is trained: a named size, with switches of config.json set over it."""

    size: str = "epilogue-tiny"
    """A name of ``epilogue.model.NAMED_SIZES``."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json; those of attn_config under ``attn_config``."""
    initialize_from: str | None = None
    """A checkpoint whose weights are the start; fresh ones if None."""

    def __post_init__(self) -> None:
        if self.size not in NAMED_SIZES:
            raise RecipeError(f"model.size is {self.size!r}; known are {', '.join(NAMED_SIZES)}")
        if not isinstance(self.set.get("attn_config", {}), Mapping):
            raise RecipeError(f"model.set.attn_config is {self.set['attn_config']!r}, wanted a table of settings")

    def config(self, vocab_size: int, context_tokens: int) -> MPTConfig:
        """The architecture, for this vocabulary and at least this context.

        Raises:
            RecipeError: ``set`` has an unknown key or an impossible value, or makes the model too small for either.
        """
        raw = config_to_dict(replace(NAMED_SIZES[self.size], vocab_size=vocab_size, max_seq_len=context_tokens))
        attention = raw["attn_config"] | dict(self.set.get("attn_config", {}))
        try:
            config = config_from_dict(raw | dict(self.set) | {"attn_config": attention}, where="model.set")
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        for name, least in (("vocab_size", vocab_size), ("max_seq_len", context_tokens)):
            if getattr(config, name) < least:
                raise RecipeError(
                    f"model.set.{name} is {getattr(config, name)}, but the run needs {least}; leave it out"
                )
        if config.attn_config.attn_pdrop:
            raise RecipeError(
                f"model.set.attn_config.attn_pdrop is {config.attn_config.attn_pdrop}; dropout of attention weights "
                "is not trained here, set it to 0"
            )
        return config


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """How weights move."""

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 4e-3
    """Peak, in AdamW's units."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averages of gradients and of their squares."""
    momentum: float = 0.95
    """Muon's average of gradients."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together; larger ones are scaled down."""

    def __post_init__(self) -> None:
        _require(self, "optimizer.", "learning_rate clip_norm", "above 0", lambda x: 0 < x < math.inf)
        _require(self, "optimizer.", "weight_decay", "0 or more", lambda x: 0 <= x < math.inf)
        _require(self, "optimizer.", "momentum", "in [0, 1)", lambda x: 0 <= x < 1)
        _require(self, "optimizer.", "betas", "two numbers in [0, 1)", lambda pair: all(0 <= x < 1 for x in pair))


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
        _require(self, "parallel.", "replicate context", "at least 1", lambda x: x >= 1)
        _require(self, "parallel.", "shard", "0 or more", lambda x: x >= 0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run: a model, its data, a context length, a number of steps.

    Raises:
        RecipeError: a value that cannot be run.
    """

    train_shards: str
    validation_shards: str
    out: str
    """Folder of checkpoints and of log.jsonl; a run found there is gone on with."""
    steps: int
    context_tokens: int = 2048
    batch_tokens: int = 262_144
    """Tokens an optimizer step sees; a multiple of micro_batch_tokens."""
    micro_batch_tokens: int = 65_536
    """Tokens a forward pass sees, a multiple of context_tokens: memory against speed, no effect but rounding. With
    parallel.context these are the tokens of all processes that share them."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    warmup_steps: int = 100
    cooldown_share: float = 0.4
    """Share of the steps, at the end, in which the learning rate falls to zero."""
    evaluate_every_steps: int = 500
    evaluate_tokens: int = 262_144
    """Held-out tokens of an evaluation; all of them if there are fewer."""
    save_every_steps: int = 500
    keep_steps: int = 2
    """Saved steps that stay, the newest."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = True
    """On CUDA only: fuse everything around attention by torch.compile."""

    def __post_init__(self) -> None:
        sizes = "steps context_tokens batch_tokens micro_batch_tokens"
        intervals = "evaluate_every_steps evaluate_tokens save_every_steps keep_steps"
        _require(self, "", f"{sizes} {intervals}", "at least 1", lambda x: x >= 1)
        _require(self, "", "warmup_steps", "0 or more", lambda x: x >= 0)
        _require(self, "", "seed", "from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32)
        _require(self, "", "cooldown_share", "from 0 to 1", lambda x: 0 <= x <= 1)
        if self.batch_tokens % self.micro_batch_tokens or self.micro_batch_tokens % self.context_tokens:
            raise RecipeError(
                f"batch_tokens {self.batch_tokens} must be a multiple of micro_batch_tokens {self.micro_batch_tokens}, "
                f"and that of context_tokens {self.context_tokens}"
            )


def _require(settings: Any, where: str, names: str, wanted: str, fits: Any) -> None:
    for name in names.split():
        value = getattr(settings, name)
        if not fits(value):
            raise RecipeError(f"{where}{name} must be {wanted}, got {value}")
