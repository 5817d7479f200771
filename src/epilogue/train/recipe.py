"""What a training run is: frozen settings that are checked when they are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from epilogue.checkpoint import load_config
from epilogue.errors import CheckpointError, RecipeError
from epilogue.model import NAMED_SIZES, MPTConfig, config_from_dict, config_to_dict
from epilogue.train.recipe_parts import LoraRecipe, MemoryRecipe, ParallelRecipe, StageRecipe
from epilogue.train.recipe_parts import require as _require


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What is trained: a named size, with switches of config.json set over it."""

    size: str | None = "epilogue-tiny"
    """A name of ``epilogue.model.NAMED_SIZES``; null for what initialize_from is."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json; those of attn_config under ``attn_config``."""
    initialize_from: str | None = None
    """A checkpoint whose weights are the start; fresh ones if None."""

    def __post_init__(self) -> None:
        if self.size is None and self.initialize_from is None:
            raise RecipeError("model.size is null without model.initialize_from; give one of the two")
        if self.size is not None and self.size not in NAMED_SIZES:
            raise RecipeError(f"model.size is {self.size!r}; known are {', '.join(NAMED_SIZES)}")
        if not isinstance(self.set.get("attn_config", {}), Mapping):
            raise RecipeError(f"model.set.attn_config is {self.set['attn_config']!r}, wanted a table of settings")

    def config(self, vocab_size: int, context_tokens: int) -> MPTConfig:
        """The architecture, for this vocabulary and at least this context.

        Raises:
            RecipeError: ``set`` has an unknown key or an impossible value, or makes the model too small for either.
            CheckpointError: without a size, the config of ``initialize_from`` cannot be read.
        """
        if self.size is None:
            assert self.initialize_from is not None
            base = load_config(self.initialize_from)
            base = base if base.has_position_embedding else replace(base, max_seq_len=context_tokens)
        else:
            base = replace(NAMED_SIZES[self.size], vocab_size=vocab_size, max_seq_len=context_tokens)
        raw = config_to_dict(base)
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

    name: Literal["muon", "adamw", "lion"] = "muon"
    learning_rate: float = 4e-3
    """Peak. Muon's is in AdamW's units; Lion's is some 3 to 10 times smaller."""
    weight_decay: float = 0.1
    """A step takes this times the learning rate of each weight: Lion's is some 3 to 10 times larger."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averages of gradients and of their squares; Lion's momentum in the step, and as it is kept."""
    state_bits: Literal[32, 8] = 32
    """Of adamw's and lion's averages, for matrices."""
    bf16_updates: Literal["residual", "stochastic"] = "residual"
    """How bf16 weights take steps smaller than their last bit: their lower half is kept too, which is fp32 in all but
    name for 2 bytes a weight more; or every step is rounded at random."""
    momentum: float = 0.95
    """Muon's average of gradients."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together; larger ones are scaled down."""

    spike_z: float | None = None
    """Leave out steps whose loss is so many deviations above its running mean; null for none."""

    def __post_init__(self) -> None:
        _require(self, "optimizer.", "spike_z", "above 0", lambda x: x is None or 0 < x < math.inf)
        if self.name == "muon" and self.state_bits != 32:
            raise RecipeError("optimizer.state_bits 8 is of adamw and lion; choose one, or 32 for muon")
        _require(self, "optimizer.", "learning_rate clip_norm", "above 0", lambda x: 0 < x < math.inf)
        _require(self, "optimizer.", "weight_decay", "0 or more", lambda x: 0 <= x < math.inf)
        _require(self, "optimizer.", "momentum", "in [0, 1)", lambda x: 0 <= x < 1)
        _require(self, "optimizer.", "betas", "two numbers in [0, 1)", lambda pair: all(0 <= x < 1 for x in pair))


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
    memory: MemoryRecipe = field(default_factory=MemoryRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    lora: LoraRecipe | None = None
    """Train adapters and nothing else; the whole model if null."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """What weights are, and on the CPU what is computed in; fp32 weights on CUDA compute in bf16 by autocast. Adapters
    are always fp32."""
    schedule: Literal["wsd", "cosine", "inverse_sqrt"] = "wsd"
    """Behind the warm-up: hold; fall like a cosine; or fall like 1 / sqrt(step)."""
    warmup_steps: int = 100
    cooldown_share: float = 0.4
    """Share of the steps, at the end, in which the learning rate falls linearly; not of cosine."""
    final_rate_share: float = 0.0
    """Of its peak, what wsd and cosine fall to."""
    stages: tuple[StageRecipe, ...] = ()
    """What changes on the way: context, slopes, batch, learning rate."""
    evaluate_every_steps: int = 500
    evaluate_tokens: int = 262_144
    """Held-out tokens of an evaluation; all of them if there are fewer."""
    save_every_steps: int = 500
    keep_steps: int = 2
    """Saved steps that stay, the newest."""
    epsilon: float = 0.0
    """Attention may leave out keys that together hold at most this share of a probability; 0 looks at everything."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = True
    """On CUDA only: fuse everything around attention by torch.compile."""
    tensorboard: bool = False
    """Log to TensorBoard too, in out/tensorboard; the extra [tensorboard]."""
    wandb: bool = False
    """Log to Weights & Biases too; the extra [wandb]."""
    mlflow: bool = False
    """Log to MLflow too; the extra [mlflow]."""

    def __post_init__(self) -> None:
        sizes = "steps context_tokens batch_tokens micro_batch_tokens"
        intervals = "evaluate_every_steps evaluate_tokens save_every_steps keep_steps"
        _require(self, "", f"{sizes} {intervals}", "at least 1", lambda x: x >= 1)
        _require(self, "", "warmup_steps", "0 or more", lambda x: x >= 0)
        _require(self, "", "epsilon", "in [0, 1)", lambda x: 0 <= x < 1)
        _require(self, "", "seed", "from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32)
        _require(self, "", "cooldown_share final_rate_share", "from 0 to 1", lambda x: 0 <= x <= 1)
        if self.weights == "bf16" and self.optimizer.name == "muon" and self.lora is None:
            raise RecipeError("muon moves fp32 weights only; set weights to fp32, or optimizer.name to lion or adamw")
        begins = [0, *(stage.from_step for stage in self.stages), self.steps]
        if any(one >= other for one, other in pairwise(begins)):
            raise RecipeError(f"stages begin at steps {begins[1:-1]}, wanted rising steps below steps = {self.steps}")
        if self.batch_tokens % self.micro_batch_tokens or self.micro_batch_tokens % self.context_tokens:
            raise RecipeError(
                f"batch_tokens {self.batch_tokens} must be a multiple of micro_batch_tokens {self.micro_batch_tokens}, "
                f"and that of context_tokens {self.context_tokens}"
            )
