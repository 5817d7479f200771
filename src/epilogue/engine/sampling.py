"""How the next token is chosen: the sampler that follows a request's settings.

The grammar, biases and DRY act on the model's logits first. Then come the stages in the order asked for, by default as
in transformers: repetition, temperature, filters. XTC is last; what is left is sampled. Everything is fp64 on the CPU,
so a seed gives the same tokens whatever device the model runs on, as far as the logits agree. The random number of a
token is a function of the seed and the token's position and of nothing else: other texts, pauses and forks change
nothing.
"""

import hashlib
import math
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from epilogue.engine import filters, penalties, temperatures
from epilogue.engine.guesses import can_guess, guess_token
from epilogue.engine.mirostat import Mirostat
from epilogue.engine.sampling_params import NUM_SEEDS, SamplingParams, Stage
from epilogue.errors import EpilogueError, RequestError


class Sampler:
    """Chooses tokens by one request's settings; holds no state but them, and mirostat's.

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
        self.num_tokens, self._eos_id = num_tokens, eos_id
        self._bias = dict(params.logit_bias)
        if params.ignore_eos and eos_id is not None:
            self._bias[eos_id] = -torch.inf
        self._mirostat = (
            Mirostat(params.mirostat, surprise=params.mirostat_surprise, rate=params.mirostat_rate)
            if params.mirostat
            else None
        )
        self.seed = secrets.randbelow(NUM_SEEDS) if params.seed is None else params.seed

    def sample(self, logits_V: Tensor, history: Sequence[int]) -> int:
        """The next token's id.

        Args:
            logits_V: what the model said, on any device and in any dtype; not changed.
            history: the whole text so far, for the penalties.

        Raises:
            EpilogueError: a logit is NaN or infinite.
            RequestError: every token is banned, or the text does not follow the grammar.
            ValueError: the logits are not one row.
        """
        if self.params.temperature == 0:
            return self._likeliest(self._unfiltered(logits_V, history), history)
        scores_V = self._filtered(logits_V, history)
        # Of tokens that were taken out nothing is computed.
        ids_K = (scores_V > -torch.inf).nonzero()[:, 0]
        probs_K = scores_V[ids_K].softmax(0)
        cumulative_K = probs_K.cumsum(0)
        drawn = _uniform(f"{self.seed}:{len(history)}") * float(cumulative_K[-1])
        place = int(torch.searchsorted(cumulative_K, drawn, right=True))
        # Rounding may put the number on the very end, behind which tokens of no probability may stand.
        place = min(place, int(probs_K.nonzero()[-1]))
        if self._mirostat is not None:
            self._mirostat.learn(float(probs_K[place]))
        return int(ids_K[place])

    def guess(self, logits_V: Tensor, history: Sequence[int]) -> Tensor | None:
        """token_1 on the logits' device, what ``sample`` will most likely say; None where nobody can tell so fast."""
        if not can_guess(self.params):
            return None
        logits_V = logits_V.detach()[: self.num_tokens]
        recent = history[-self.params.repetition_range_tokens :]
        seen = [token_id for token_id in recent if 0 <= token_id < len(logits_V)]
        return guess_token(logits_V, self.params, seen=seen, drawn=_uniform(f"{self.seed}:{len(history)}"))

    def probabilities(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        """The distribution that ``sample`` draws from, probs_V in fp64 on the CPU; arguments and errors are its own.

        V is ``num_tokens`` where that is smaller. At temperature 0 one token has it all.
        """
        if self.params.temperature == 0:
            scores_V = self._unfiltered(logits_V, history)
            probs_V = torch.zeros_like(scores_V)
            probs_V[self._likeliest(scores_V, history)] = 1.0
            return probs_V
        return self._filtered(logits_V, history).softmax(0)

    def _filtered(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        """Scores behind all stages; minus infinity for what was taken out."""
        scores_V = self._unfiltered(logits_V, history)
        for stage in self.params.order:
            if self._mirostat is None or stage in ("repetition", "temperature"):
                scores_V = self._pass_through(stage, scores_V, history)
        if self._mirostat is not None:
            return self._mirostat.keep(scores_V)
        is_time = _uniform(f"{self.seed}:{len(history)}:xtc") < self.params.xtc_probability
        return filters.exclude_top_choices(scores_V, threshold=self.params.xtc_threshold) if is_time else scores_V

    def _unfiltered(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        scores_V = self._checked(logits_V, history)
        if self.params.grammar is not None:
            allowed_V = self.params.grammar.allowed(history)
            scores_V[len(allowed_V) :] = -torch.inf
            scores_V[: len(allowed_V)].masked_fill_(~allowed_V[: len(scores_V)], -torch.inf)
            if allowed_V.nonzero().flatten().tolist() == [self._eos_id]:
                return scores_V
        scores_V = self._biased(scores_V)
        return self._dry(scores_V, history) if self.params.dry_multiplier > 0 else scores_V

    def _likeliest(self, scores_V: Tensor, history: Sequence[int]) -> int:
        """The first of them, whatever filters say."""
        if "repetition" in self.params.order:
            scores_V = self._penalized(scores_V, history)
        return int(scores_V.argmax())

    def _checked(self, logits_V: Tensor, history: Sequence[int]) -> Tensor:
        """Logits of the tokens there are, a copy in fp64 on the CPU."""
        if logits_V.ndim != 1:
            raise ValueError(f"wanted logits of one token, [V], got {tuple(logits_V.shape)}")
        # As narrow as they are on the way from a device, wide behind it.
        scores_V = logits_V.detach()[: self.num_tokens].cpu().to(torch.float64, copy=True)
        # Of finite numbers a sum may overflow; what is not finite always shows in it, and it is the fastest to ask for.
        if not math.isfinite(scores_V.sum()) and (num_bad := int((~scores_V.isfinite()).sum())):
            raise EpilogueError(
                f"{num_bad} of {len(scores_V)} logits after {len(history)} tokens are not finite, so no token can be"
                " chosen; check the checkpoint's weights, or run it in float32"
            )
        return scores_V

    def _biased(self, scores_V: Tensor) -> Tensor:
        for token_id, bias in self._bias.items():
            if 0 <= token_id < len(scores_V):
                scores_V[token_id] += bias
        # The model's own are finite.
        is_changed = self.params.grammar is not None or bool(self._bias)
        if is_changed and scores_V.max() == -torch.inf:
            raise RequestError(f"all {len(scores_V)} tokens are banned, so none can be chosen; ban fewer")
        return scores_V

    def _dry(self, scores_V: Tensor, history: Sequence[int]) -> Tensor:
        params = self.params
        return penalties.penalize_continued_repeats(
            scores_V,
            history[-params.dry_range_tokens :],
            multiplier=params.dry_multiplier,
            base=params.dry_base,
            allowed_length=params.dry_allowed_length,
            breakers=params.dry_breakers,
        )

    def _penalized(self, scores_V: Tensor, history: Sequence[int]) -> Tensor:
        params = self.params
        # A range of 0 makes this slice the whole text, as it should.
        recent = history[-params.repetition_range_tokens :]
        if params.repetition_penalty != 1:
            scores_V = penalties.penalize_repetition(
                scores_V, recent, penalty=params.repetition_penalty, slope=params.repetition_slope
            )
        if params.presence_penalty or params.frequency_penalty:
            scores_V = penalties.penalize_occurrence(
                scores_V, recent, presence=params.presence_penalty, frequency=params.frequency_penalty
            )
        return scores_V

    def _heated(self, scores_V: Tensor) -> Tensor:
        params, temperature = self.params, self.params.temperature
        if params.temperature_range > 0:
            temperature = temperatures.entropy_temperature(
                scores_V,
                low=max(temperature - params.temperature_range, 1e-3),
                high=temperature + params.temperature_range,
                exponent=params.temperature_exponent,
            )
        scores_V = temperatures.apply_temperature(scores_V, temperature=temperature)
        if params.smoothing_factor > 0:
            return temperatures.smooth(scores_V, factor=params.smoothing_factor, curve=params.smoothing_curve)
        return scores_V

    def _pass_through(self, stage: Stage, scores_V: Tensor, history: Sequence[int]) -> Tensor:
        params = self.params
        if stage == "repetition":
            return self._penalized(scores_V, history)
        if stage == "temperature":
            return self._heated(scores_V)
        if stage == "top_p":
            if params.top_p < 1 and params.min_p > 0:
                return filters.keep_top_p_then_min_p(scores_V, top_p=params.top_p, min_p=params.min_p)
            kept_V = filters.keep_top_p(scores_V, top_p=params.top_p) if params.top_p < 1 else scores_V
            return filters.keep_min_p(kept_V, min_p=params.min_p) if params.min_p > 0 else kept_V
        if stage == "top_k" and params.top_k > 0:
            return filters.keep_top_k(scores_V, top_k=params.top_k)
        if stage == "top_a" and params.top_a > 0:
            return filters.keep_top_a(scores_V, top_a=params.top_a)
        if stage == "tail_free" and params.tail_free < 1:
            return filters.keep_before_tail(scores_V, tail_free=params.tail_free)
        if stage == "typical" and params.typical < 1:
            return filters.keep_typical(scores_V, typical=params.typical)
        return scores_V


def _uniform(key: str) -> float:
    """A number in [0, 1) for one token of one seed's text."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
