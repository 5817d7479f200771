"""A recipe by step: context, batch, slopes and learning rate. Functions of the step, so resuming needs no state."""

from dataclasses import dataclass

from epilogue.errors import RecipeError
from epilogue.train.recipe import Recipe
from epilogue.train.schedule import learning_rate_factor


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps that see batches of one shape."""

    first_step: int
    context_tokens: int
    batch_tokens: int
    micro_batch_tokens: int
    alibi_bias_max: float | None
    """None for what the model has."""
    bias_ramp_steps: int

    def __post_init__(self) -> None:
        if self.batch_tokens % self.micro_batch_tokens or self.micro_batch_tokens % self.context_tokens:
            raise RecipeError(
                f"batch_tokens {self.batch_tokens} must be a multiple of micro_batch_tokens {self.micro_batch_tokens}, "
                f"and that of context_tokens {self.context_tokens}, also in the stage from step {self.first_step}"
            )


@dataclass(frozen=True)
class _Rate:
    """A schedule of the learning rate, and the steps it lasts."""

    first_step: int
    end_step: int
    peak: float
    warmup_steps: int
    cooldown_share: float


class Stages:
    """All of a recipe's stages in order; the first is the recipe without them.

    Raises:
        RecipeError: batches of a stage that do not divide.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.all = [
            Stage(
                first_step=0,
                context_tokens=recipe.context_tokens,
                batch_tokens=recipe.batch_tokens,
                micro_batch_tokens=recipe.micro_batch_tokens,
                alibi_bias_max=None,
                bias_ramp_steps=0,
            )
        ]
        for change in recipe.stages:
            before = self.all[-1]
            self.all.append(
                Stage(
                    first_step=change.from_step,
                    context_tokens=change.context_tokens or before.context_tokens,
                    batch_tokens=change.batch_tokens or before.batch_tokens,
                    micro_batch_tokens=change.micro_batch_tokens or before.micro_batch_tokens,
                    alibi_bias_max=change.alibi_bias_max or before.alibi_bias_max,
                    bias_ramp_steps=change.bias_ramp_steps if change.alibi_bias_max else 0,
                )
            )
        self._rates = _rates(recipe)

    @property
    def most_context_tokens(self) -> int:
        """The longest context of any stage."""
        return max(stage.context_tokens for stage in self.all)

    def number_at(self, step: int) -> int:
        """Which stage a step belongs to."""
        return max(number for number, stage in enumerate(self.all) if stage.first_step <= step)

    def learning_rate(self, step: int) -> float:
        """Of a step, 0-based."""
        rate = max((rate for rate in self._rates if rate.first_step <= step), key=lambda rate: rate.first_step)
        return rate.peak * learning_rate_factor(
            step - rate.first_step,
            steps=rate.end_step - rate.first_step,
            warmup_steps=rate.warmup_steps,
            cooldown_share=rate.cooldown_share,
            schedule=self._recipe.schedule,
            final_share=self._recipe.final_rate_share,
        )

    def alibi_bias_max(self, step: int, *, at_first: float) -> float:
        """Of a step, 0-based, for a model that begins with ``at_first``."""
        number = self.number_at(step)
        stage = self.all[number]
        if stage.alibi_bias_max is None:
            return at_first
        done = step - stage.first_step + 1
        if done >= stage.bias_ramp_steps:
            return stage.alibi_bias_max
        # A ramp ends with its stage, wherever it has come to.
        before = self.alibi_bias_max(stage.first_step - 1, at_first=at_first)
        return before + (stage.alibi_bias_max - before) * done / stage.bias_ramp_steps


def _rates(recipe: Recipe) -> list[_Rate]:
    begun = [stage for stage in recipe.stages if stage.learning_rate is not None]
    ends = [*(stage.from_step for stage in begun), recipe.steps]
    peak = recipe.optimizer.learning_rate
    rates = [_Rate(0, ends[0], peak, recipe.warmup_steps, recipe.cooldown_share)]
    for stage, end in zip(begun, ends[1:], strict=True):
        assert stage.learning_rate is not None
        warmup = recipe.warmup_steps if stage.warmup_steps is None else stage.warmup_steps
        cooldown = recipe.cooldown_share if stage.cooldown_share is None else stage.cooldown_share
        rates.append(_Rate(stage.from_step, end, stage.learning_rate, warmup, cooldown))
    return rates
