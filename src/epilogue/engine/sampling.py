"""How the next token is chosen: the settings of a request, checked, and the sampler that follows them.

Filters act in this order, as in transformers: repetition penalty on the model's logits, temperature, top_k, top_p,
min_p; what is left is sampled. llama.cpp differs in taking the temperature last. Everything is fp64 on the CPU, so a
seed gives the same tokens whatever device the model runs on, as far as the logits agree. The random number of a token
is a function of the seed and the token's position and of nothing else: other texts, pauses and forks change nothing.
"""

import hashlib
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epilogue.engine import filters
from epilogue.errors import EpilogueError, RequestError

# Seeds that are drawn are short enough to be typed again.
_NUM_SEEDS = 2**32
_LARGEST = sys.float_info.max
# Field, whether whole, test, what is wanted, and what to do.
_LIMITS: tuple[tuple[str, bool, Callable[[Any], bool], str, str], ...] = (
    ("temperature", False, lambda x: 0 <= x <= _LARGEST, "a finite number >= 0", "0 always takes the likeliest token"),
    ("top_k", True, lambda x: x >= 0, "a whole number >= 0", "0 turns it off"),
    ("top_p", False, lambda x: 0 < x <= 1, "in (0, 1]", "1.0 turns it off"),
    ("min_p", False, lambda x: 0 <= x <= 1, "in [0, 1]", "0 turns it off"),
    ("repetition_penalty", False, lambda x: 0.01 <= x <= 100, "in [0.01, 100]", "1.0 turns it off"),
    ("repetition_range_tokens", True, lambda x: x >= 0, "a whole number >= 0", "0 counts the whole text"),
    ("seed", True, lambda x: 0 <= x < _NUM_SEEDS, "a whole number in [0, 2**32)", "None draws one"),
    ("max_new_tokens", True, lambda x: x >= 0, "a whole number >= 0", "0 writes nothing"),
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and how many.

    Raises:
        RequestError: a field is out of its range, not finite, or no number.
    """

    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token (after the repetition penalty), whatever the filters say."""
    top_k: int = 0
    """Only this many likeliest tokens; 0 is off."""
    top_p: float = 0.95
    """Only the likeliest tokens that reach this probability together; 1 is off."""
    min_p: float = 0.05
    """Only tokens at least this share as likely as the likeliest; 0 is off."""
    repetition_penalty: float = 1.1
    """Positive logits of tokens seen lately are divided by it, negative ones multiplied; 1 is off."""
    repetition_range_tokens: int = 512
    """How many of the last tokens count as lately, the book's and the story's alike; 0 is all."""
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


def _is_number(value: object, *, is_whole: bool) -> bool:
    return isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)


class Sampler:
    """Chooses tokens by one request's settings; holds no state but them.

    Args:
        params: the settings.
        eos_id: end of text, which ``ignore_eos`` never lets happen.
        num_tokens: ids from here on are rows that only pad the embedding, and are never chosen. None: no such rows.

    Raises:
        ValueError: ``num_tokens`` is less than 1 or ``eos_id`` negative.
    """

    seed: int
    """The seed in effect, to repeat the run with."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        eos_id: int | None = None,
        num_tokens: int | None = None,
    ) -> None:
        if num_tokens is not None and num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        if eos_id is not None and eos_id < 0:
            raise ValueError(f"eos_id must be at least 0 or None, got {eos_id}")
        self.params = params
        self.num_tokens = num_tokens
        self._banned_id = eos_id if params.ignore_eos else None
        self.seed = secrets.randbelow(_NUM_SEEDS) if params.seed is None else params.seed

    def sample(self, logits_V: Tensor, history: Sequence[int]) -> int:
        """The next token's id.

        Args:
            logits_V: what the model said, on any device and in any dtype; not changed.
            history: the whole text so far, for the repetition penalty.

        Raises:
            EpilogueError: a logit is NaN or infinite.
            ValueError: the logits are not one row.
        """
        scores_V = self._scores(logits_V, history)
        if self.params.temperature == 0:
            return int(scores_V.argmax())
        probs_V = self._filter(scores_V).softmax(0)
        cumulative_V = probs_V.cumsum(0)
        drawn = _uniform(self.seed, len(history)) * float(cumulative_V[-1])
        token_id = int(torch.searchsorted(cumulative_V, drawn, right=True))
        # Rounding may put the number on the very end, behind which tokens of no probability may stand.
        return min(token_id, int(probs_V.nonzero()[-1]))

    def probabilities(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        """The distribution that ``sample`` draws from, probs_V in fp64 on the CPU; arguments and errors are its own.

        V is ``num_tokens`` where that is smaller. At temperature 0 one token has it all.
        """
        scores_V = self._scores(logits_V, history)
        if self.params.temperature == 0:
            return torch.zeros_like(scores_V).index_fill_(0, scores_V.argmax(), 1.0)
        return self._filter(scores_V).softmax(0)

    def _scores(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        """Logits of the tokens that may be chosen, after the repetition penalty."""
        if logits_V.ndim != 1:
            raise ValueError(f"wanted logits of one token, [V], got {tuple(logits_V.shape)}")
        scores_V = logits_V.detach()[: self.num_tokens].to("cpu", torch.float64, copy=True)
        if num_bad := int((~scores_V.isfinite()).sum()):
            raise EpilogueError(
                f"{num_bad} of {len(scores_V)} logits after {len(history)} tokens are not finite, so no token can be"
                " chosen; check the checkpoint's weights, or run it in float32"
            )
        if self._banned_id is not None and self._banned_id < len(scores_V):
            scores_V[self._banned_id] = -torch.inf
        if self.params.repetition_penalty == 1:
            return scores_V
        # A range of 0 makes this slice the whole text, as it should.
        recent = history[-self.params.repetition_range_tokens :]
        return filters.penalize_repetition(scores_V, recent, penalty=self.params.repetition_penalty)

    def _filter(self, scores_V: Tensor) -> Tensor:
        params = self.params
        scores_V = filters.apply_temperature(scores_V, temperature=params.temperature)
        if params.top_k > 0:
            scores_V = filters.keep_top_k(scores_V, top_k=params.top_k)
        if params.top_p < 1:
            scores_V = filters.keep_top_p(scores_V, top_p=params.top_p)
        if params.min_p > 0:
            scores_V = filters.keep_min_p(scores_V, min_p=params.min_p)
        return scores_V


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for one token of one seed's text."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
