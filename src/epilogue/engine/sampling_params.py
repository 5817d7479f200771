"""The settings of a request, checked: how to choose tokens, and how many."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from epilogue.engine.grammar import GrammarText
from epilogue.errors import RequestError

NUM_SEEDS = 2**32
"""Seeds are short enough to be typed again."""
Stage = Literal["repetition", "temperature", "top_k", "top_a", "top_p", "tail_free", "typical"]
_LARGEST = sys.float_info.max
# Field, whether whole, test, what is wanted, and what to do.
_LIMITS: tuple[tuple[str, bool, Callable[[Any], bool], str, str], ...] = (
    ("temperature", False, lambda x: 0 <= x <= _LARGEST, "a finite number >= 0", "0 always takes the likeliest token"),
    ("temperature_range", False, lambda x: 0 <= x <= _LARGEST, "a finite number >= 0", "0 keeps the temperature"),
    ("temperature_exponent", False, lambda x: 0 < x <= 100, "in (0, 100]", "1.0 is the plain one"),
    ("smoothing_factor", False, lambda x: 0 <= x <= 1e6, "in [0, 1e6]", "0 turns it off"),
    ("smoothing_curve", False, lambda x: 1 <= x <= 1e6, "in [1, 1e6]", "1.0 is quadratic"),
    ("top_k", True, lambda x: x >= 0, "a whole number >= 0", "0 turns it off"),
    ("top_a", False, lambda x: 0 <= x <= 1, "in [0, 1]", "0 turns it off"),
    ("top_p", False, lambda x: 0 < x <= 1, "in (0, 1]", "1.0 turns it off"),
    ("min_p", False, lambda x: 0 <= x <= 1, "in [0, 1]", "0 turns it off"),
    ("tail_free", False, lambda x: 0 < x <= 1, "in (0, 1]", "1.0 turns it off"),
    ("typical", False, lambda x: 0 < x <= 1, "in (0, 1]", "1.0 turns it off"),
    ("repetition_penalty", False, lambda x: 0.01 <= x <= 100, "in [0.01, 100]", "1.0 turns it off"),
    ("repetition_slope", False, lambda x: 0 < x <= 1, "in (0, 1]", "1.0 counts the whole range alike"),
    ("repetition_range_tokens", True, lambda x: x >= 0, "a whole number >= 0", "0 counts the whole text"),
    ("presence_penalty", False, lambda x: -100 <= x <= 100, "in [-100, 100]", "0 turns it off"),
    ("frequency_penalty", False, lambda x: -100 <= x <= 100, "in [-100, 100]", "0 turns it off"),
    ("dry_multiplier", False, lambda x: 0 <= x <= 100, "in [0, 100]", "0 turns it off"),
    ("dry_base", False, lambda x: 1 <= x <= 100, "in [1, 100]", "1.75 is usual"),
    ("dry_allowed_length", True, lambda x: x >= 1, "a whole number >= 1", "2 is usual"),
    ("dry_range_tokens", True, lambda x: x >= 0, "a whole number >= 0", "0 searches the whole text"),
    ("xtc_probability", False, lambda x: 0 <= x <= 1, "in [0, 1]", "0 turns it off"),
    ("xtc_threshold", False, lambda x: 0 <= x <= 1, "in [0, 1]", "more than 0.5 turns it off"),
    ("mirostat", True, lambda x: x in (0, 1, 2), "0, 1 or 2", "0 turns it off"),
    ("mirostat_surprise", False, lambda x: 0 <= x <= 1000, "in [0, 1000] bits", "5.0 is usual"),
    ("mirostat_rate", False, lambda x: 0 <= x <= 1, "in [0, 1]", "0.1 is usual"),
    ("seed", True, lambda x: 0 <= x < NUM_SEEDS, "a whole number in [0, 2**32)", "None draws one"),
    ("max_new_tokens", True, lambda x: x >= 0, "a whole number >= 0", "0 writes nothing"),
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and how many.

    Raises:
        RequestError: a field is out of its range, not finite, or no number.
    """

    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token (after biases and penalties), whatever the filters say."""
    temperature_range: float = 0.0
    """The temperature is taken so much lower where the model is sure, and so much higher where it is not."""
    temperature_exponent: float = 1.0
    """Bends that: of 1 the temperature grows as the entropy does."""
    smoothing_factor: float = 0.0
    """Flattens likely tokens and sinks unlikely ones, in place beside the temperature; 0 is off."""
    smoothing_curve: float = 1.0
    """More sinks unlikely tokens deeper."""
    top_k: int = 0
    """Only this many likeliest tokens; 0 is off."""
    top_a: float = 0.0
    """Only tokens at least this times the square of the largest probability; 0 is off."""
    top_p: float = 0.95
    """Only the likeliest tokens that reach this probability together; 1 is off."""
    min_p: float = 0.05
    """Only tokens at least this share as likely as the likeliest; acts right behind top_p; 0 is off."""
    tail_free: float = 1.0
    """Cuts where the sorted probabilities have flattened; 1 is off."""
    typical: float = 1.0
    """Only the tokens whose surprise is nearest to the expected one, up to this probability; 1 is off."""
    repetition_penalty: float = 1.1
    """Positive logits of tokens seen lately are divided by it, negative ones multiplied; 1 is off."""
    repetition_slope: float = 1.0
    """In the older half of the range only this share of what the penalty is above 1."""
    repetition_range_tokens: int = 512
    """How many of the last tokens count as lately, the book's and the story's alike; 0 is all. For all penalties."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens seen lately."""
    frequency_penalty: float = 0.0
    """The same, as often as they were seen."""
    dry_multiplier: float = 0.0
    """Of the penalty on a token that would go on with a repeated passage; 0 is off."""
    dry_base: float = 1.75
    """By which that penalty grows with every token of the passage."""
    dry_allowed_length: int = 2
    """Passages of so many tokens are penalised by the multiplier alone, shorter ones not at all."""
    dry_range_tokens: int = 2048
    """How far back passages are looked for; 0 is the whole text."""
    dry_breakers: frozenset[int] = frozenset()
    """Tokens that no passage goes across: line ends, quotes, names of speakers."""
    xtc_probability: float = 0.0
    """How often the likeliest choices are left out; 0 is off."""
    xtc_threshold: float = 0.1
    """What is a likely choice; the least likely of them stays."""
    mirostat: int = 0
    """1 or 2: holds the text's surprise at a target by feedback instead of all filters; 0 is off."""
    mirostat_surprise: float = 5.0
    """The target, in bits a token."""
    mirostat_rate: float = 0.1
    """How fast it is followed."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of some tokens; minus infinity bans one."""
    grammar: GrammarText | None = None
    """What the text may be; where it allows nothing more the text ends, ``ignore_eos`` or not. Acts before all else."""
    order: tuple[Stage, ...] = ("repetition", "temperature", "top_k", "top_a", "top_p", "tail_free", "typical")
    """In which the stages act, each at most once; one that is left out does not act."""
    seed: int | None = None
    """Same seed, same text, same tokens; None draws a seed, which ``Sampler.seed`` tells."""
    max_new_tokens: int = 400
    """Stop after this many tokens."""
    ignore_eos: bool = False
    """Never sample the end-of-text token, so that the story goes on."""

    def __post_init__(self) -> None:
        for name, is_whole, is_in_range, wanted, advice in _LIMITS:
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if not _is_number(value, is_whole=is_whole) or not is_in_range(value):
                raise RequestError(f"{name} must be {wanted}, got {value!r}; {advice}")
        if len(set(self.order)) < len(self.order) or not set(self.order) <= set(get_args(Stage)):
            raise RequestError(f"order must name each of {', '.join(get_args(Stage))} at most once, got {self.order!r}")
        for token_id, bias in self.logit_bias.items():
            if not _is_number(token_id, is_whole=True) or not _is_number(bias, is_whole=False) or not bias < math.inf:
                raise RequestError(f"logit_bias must give token ids finite numbers, got {token_id!r}: {bias!r}")


def _is_number(value: object, *, is_whole: bool) -> bool:
    return isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
