"""A training run as a YAML file, read strictly: an unknown key is an error that names the nearest known one."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

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

    def config(self, vocab_size: int, context_tokens: int) -> MPTConfig:
        """The architecture, for this vocabulary and at least this context."""
        if self.size not in NAMED_SIZES:
            raise RecipeError(f"model.size is {self.size!r}; known are {', '.join(NAMED_SIZES)}")
        raw = config_to_dict(replace(NAMED_SIZES[self.size], vocab_size=vocab_size, max_seq_len=context_tokens))
        attention = raw["attn_config"] | dict(self.set.get("attn_config", {}))
        try:
            return config_from_dict(raw | dict(self.set) | {"attn_config": attention}, where="model.set")
        except CheckpointError as error:
            raise RecipeError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """How weights move."""

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 4e-3
    """Peak, in AdamW's units."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    clip_norm: float = 1.0
    """Largest norm of all gradients together; larger ones are scaled down."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run: a model, its data, a context length, a number of steps."""

    train_shards: str
    validation_shards: str
    out: str
    """Folder of checkpoints and of log.jsonl; a run found there is gone on with."""
    steps: int
    context_tokens: int = 2048
    batch_tokens: int = 262_144
    """Tokens an optimizer step sees; a multiple of context_tokens."""
    micro_batch_tokens: int = 65_536
    """Tokens a forward pass sees: memory against speed, no effect on the result but rounding."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    warmup_steps: int = 100
    cooldown_share: float = 0.4
    """Share of the steps, at the end, in which the learning rate falls to zero."""
    evaluate_every_steps: int = 500
    evaluate_tokens: int = 262_144
    save_every_steps: int = 500
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = True
    """On CUDA only: fuse everything around attention by torch.compile."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"steps must be at least 1, got {self.steps}")
        if self.batch_tokens % self.micro_batch_tokens or self.micro_batch_tokens % self.context_tokens:
            raise RecipeError(
                f"batch_tokens {self.batch_tokens} must be a multiple of micro_batch_tokens {self.micro_batch_tokens}, "
                f"and that of context_tokens {self.context_tokens}"
            )


def read_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with ``a.b=c`` settings over it (c as in YAML).

    Raises:
        RecipeError: no such file, no YAML, an unknown or missing key, or a value of the wrong kind.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"the recipe {path} must be a table of settings")
    for setting in overrides:
        _override(raw, setting)
    recipe = _build(Recipe, raw, "")
    assert isinstance(recipe, Recipe)
    return recipe


def _override(raw: dict[str, Any], setting: str) -> None:
    path, equals, value = setting.partition("=")
    if not equals:
        raise RecipeError(f"--set takes key=value, got {setting!r}")
    *parents, last = path.split(".")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"--set {setting}: {name} is no table")
    raw[last] = yaml.safe_load(value)


def _build(kind: type[Any], raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise RecipeError(f"{where or 'the recipe'} must be a table of settings, got {raw!r}")
    hints = get_type_hints(kind)
    for name in raw:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(hints)}"
            raise RecipeError(f"unknown key {where}{name}{hint}")
    for f in fields(kind):
        if f.name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise RecipeError(f"the key {where}{f.name} is missing")
    return kind(**{name: _convert(hints[name], value, f"{where}{name}") for name, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint in (ModelRecipe, OptimizerRecipe):
        return _build(hint, value, f"{where}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        fits, wanted = value in arguments, " or ".join(map(str, arguments))
    elif origin is tuple:
        fits, wanted = isinstance(value, list) and len(value) == len(arguments), f"{len(arguments)} numbers"
        value = tuple(map(float, value)) if fits else value
    elif hint is float:
        value = _number(value)
        fits, wanted = isinstance(value, float), "a number"
    elif hint in (int, bool, str):
        fits, wanted = type(value) is hint, f"a value of type {hint.__name__}"
    elif origin is Mapping:
        fits, wanted = isinstance(value, dict), "a table of settings"
    else:
        fits, wanted = value is None or isinstance(value, str), "a path or null"
    if not fits:
        raise RecipeError(f"{where} is {value!r}, wanted {wanted}")
    return value


def _number(value: Any) -> Any:
    """YAML reads 4e-3 as a string; take it for the number it is."""
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value
