"""The sampler fields of every API: KoboldCpp's names and the aliases that its clients send beside them.

Fields, defaults and aliases are KoboldCpp's, as Kobold Lite and SillyTavern send them: every alias at once, numbers as
strings, lists as strings of JSON, null for what is not set. Unknown fields mean nothing. SillyTavern sends the same to
/v1/completions, which has other defaults. No input or output happens here.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from epilogue.engine import SamplingParams
from epilogue.engine.sampling_params import NUM_SEEDS, Stage
from epilogue.text import Tokenizer

# By their number in sampler_order.
_STAGES: tuple[Stage, ...] = ("top_k", "top_a", "top_p", "tail_free", "typical", "temperature", "repetition")
_REPETITION = _STAGES.index("repetition")
# The first name that is there counts.
_ALIASES: dict[str, tuple[str, ...]] = {
    "max_length": ("max_new_tokens", "max_tokens", "n_predict", "max_completion_tokens"),
    "max_context_length": ("truncation_length",),
    "rep_pen": ("repetition_penalty", "repeat_penalty"),
    "rep_pen_range": ("repetition_penalty_range", "repeat_last_n"),
    "typical": ("typical_p",),
    "tfs": ("tfs_z",),
    "mirostat": ("mirostat_mode",),
    "sampler_seed": ("seed",),
    "stop_sequence": ("stop", "stopping_strings"),
    "banned_tokens": ("banned_strings",),
    "bypass_eos": ("ban_eos_token", "ignore_eos", "use_default_badwordsids"),
    "dynatemp_range": ("dynatemp",),
    "grammar": ("grammar_string",),
}


def as_list(value: object) -> object:
    """A list that came as JSON in a string, or as a string alone."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return [value]
    return parsed if isinstance(parsed, list) else [value]


def not_too_many(value: object) -> object:
    """Biases whose number is looked at first: of millions that are wrong each would make an error."""
    if isinstance(value, Mapping) and len(value) > MOST_BIASES:
        raise ValueError(f"there are {len(value)}, and at most {MOST_BIASES} are taken")
    return value


def _as_ids(value: object) -> object:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Text = Annotated[str, Field(max_length=64_000_000)]
"""A prompt, or another text that may be as long as a book."""
MOST_BIASES = 4096
MOST_GRAMMAR = 100_000
"""Characters of a grammar, or of a schema."""
_Texts = Annotated[list[Annotated[str, Field(max_length=10_000)]], Field(fail_fast=True), BeforeValidator(as_list)]


class SamplerFields(BaseModel):
    """How to choose tokens and when to end, on every API; after aliases."""

    model_config = ConfigDict(
        extra="ignore",
        allow_inf_nan=False,
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(name, *_ALIASES.get(name, ()))),
    )

    n: Annotated[int, Field(ge=1, le=16)] = 1
    max_length: Annotated[int, Field(ge=0, le=1_000_000)] = 400
    max_context_length: Annotated[int, Field(ge=1)] | None = None
    temperature: float = 0.75
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    smoothing_factor: float = 0.0
    smoothing_curve: float = 1.0
    top_k: int = 100
    top_a: float = 0.0
    top_p: float = 0.92
    min_p: float = 0.0
    typical: float = 1.0
    tfs: float = 1.0
    rep_pen: float = 1.0
    rep_pen_range: int = 320
    rep_pen_slope: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 320
    dry_sequence_breakers: Annotated[_Texts, Field(max_length=256)] = []
    xtc_threshold: float = 0.2
    xtc_probability: float = 0.0
    sampler_order: Annotated[list[int], Field(max_length=16, fail_fast=True), BeforeValidator(as_list)] = [
        6,
        0,
        1,
        3,
        4,
        2,
        5,
    ]
    sampler_seed: int = -1
    stop_sequence: Annotated[_Texts, Field(max_length=256)] = []
    trim_stop: bool = True
    bypass_eos: bool = False
    logit_bias: Annotated[dict[int, float], Field(max_length=MOST_BIASES), BeforeValidator(not_too_many)] = {}
    custom_token_bans: Annotated[list[int], Field(max_length=4096, fail_fast=True), BeforeValidator(_as_ids)] = []
    banned_tokens: Annotated[_Texts, Field(max_length=768)] = []
    grammar: Annotated[str, Field(max_length=MOST_GRAMMAR)] = ""
    grammar_retain_state: bool = False

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_not_set(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        return {name: value for name, value in body.items() if value is not None and value != ""}

    def sampling_params(self, tokenizer: Tokenizer) -> SamplingParams:
        """The settings they come to.

        Raises:
            RequestError: a field is out of range.
        """
        return SamplingParams(
            max_new_tokens=self.max_length,
            temperature=self.temperature,
            temperature_range=self.dynatemp_range,
            temperature_exponent=self.dynatemp_exponent,
            smoothing_factor=self.smoothing_factor,
            smoothing_curve=self.smoothing_curve,
            top_k=max(0, self.top_k),
            top_a=self.top_a,
            top_p=_share(self.top_p),
            min_p=self.min_p,
            typical=_share(self.typical),
            tail_free=_share(self.tfs),
            repetition_penalty=self.rep_pen or 1.0,
            repetition_range_tokens=max(0, self.rep_pen_range),
            repetition_slope=_share(self.rep_pen_slope),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            mirostat=self.mirostat,
            mirostat_surprise=self.mirostat_tau,
            mirostat_rate=self.mirostat_eta,
            dry_multiplier=self.dry_multiplier,
            dry_base=self.dry_base,
            dry_allowed_length=max(1, self.dry_allowed_length),
            dry_range_tokens=max(0, self.dry_penalty_last_n),
            dry_breakers=tokenizer.ids_containing(tuple(self.dry_sequence_breakers)),
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            logit_bias=self._biases(),
            order=_order(self.sampler_order),
            seed=None if self.sampler_seed < 0 else self.sampler_seed % NUM_SEEDS,
            ignore_eos=self.bypass_eos,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends the text."""
        return tuple(text for text in self.stop_sequence if text)

    @property
    def banned_phrases(self) -> tuple[str, ...]:
        """What is never written."""
        return tuple(text for text in self.banned_tokens if text)

    def _biases(self) -> dict[int, float]:
        # KoboldCpp's range; its end is a ban.
        biases = {i: float("-inf") if x <= -100 else min(x, 100.0) for i, x in self.logit_bias.items()}
        return biases | dict.fromkeys(self.custom_token_bans, float("-inf"))


def _share(value: float) -> float:
    """Clients switch a filter off by 1, 0 or less, or more than 1."""
    return value if 0 < value <= 1 else 1.0


def _order(numbers: list[int]) -> tuple[Stage, ...]:
    """Of six numbers the penalty is left out, and comes first."""
    if _REPETITION not in numbers:
        numbers = [_REPETITION, *numbers]
    known = [_STAGES[number] for number in dict.fromkeys(numbers) if 0 <= number < len(_STAGES)]
    return tuple(known + [stage for stage in _STAGES if stage not in known])
