"""Guesses, made on the device, of the token that the sampler will choose on the host.

What is guessed goes through the model while the host still chooses, so that a GPU need not wait for it. A guess decides
nothing: the sampler's token counts, and a pass over another one is thrown away (``engine.decoder``). The arithmetic is
the sampler's, in fp64, so guesses are wrong only where rounding decides.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from epilogue.engine.sampling_params import SamplingParams
from epilogue.model import upload


def can_guess(params: SamplingParams) -> bool:
    """Whether ``guess_token`` knows all that these settings ask for."""
    others = (
        params.grammar is not None,
        params.dry_multiplier,
        params.xtc_probability,
        params.mirostat,
        params.temperature_range,
        params.smoothing_factor,
        params.top_a,
        params.logit_bias,
        params.ignore_eos,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_slope != 1,
        params.tail_free != 1,
        params.typical != 1,
        params.order != SamplingParams.order,
    )
    return not any(others)


def guess_token(logits_V: Tensor, params: SamplingParams, *, seen: Sequence[int], drawn: float) -> Tensor:
    """token_1, int64: the likely outcome of ``Sampler.sample``, where ``can_guess``. Waits for nothing.

    Args:
        logits_V: of the tokens that may be chosen, on any device.
        params: the request's settings.
        seen: tokens that count as seen lately, all of them in the logits.
        drawn: the token's random number.
    """
    scores_V = logits_V.to(torch.float64, copy=True)
    if params.repetition_penalty != 1 and seen:
        _penalize(scores_V, seen, params.repetition_penalty)
    if params.temperature == 0:
        return scores_V.argmax(dim=0, keepdim=True)
    scores_V = (scores_V - scores_V.max()) / params.temperature
    kept_V = scores_V.masked_fill(~_is_kept(scores_V, params), -math.inf)
    cumulative_V = kept_V.softmax(0).cumsum(0)
    place_1 = torch.searchsorted(cumulative_V, drawn * cumulative_V[-1:], right=True)
    return place_1.clamp(max=len(cumulative_V) - 1)


def _penalize(scores_V: Tensor, seen: Sequence[int], penalty: float) -> None:
    index = upload(torch.tensor(sorted(set(seen))), scores_V.device)
    chosen = scores_V[index]
    # By a number of the host a GPU multiplies with what is nearly its inverse; a tensor divides.
    divisor = torch.full((), penalty, dtype=scores_V.dtype, device=scores_V.device)
    scores_V.index_copy_(0, index, torch.where(chosen < 0, chosen * penalty, chosen / divisor))


def _is_kept(scores_V: Tensor, params: SamplingParams) -> Tensor:
    """Which tokens the filters leave."""
    is_kept_V = torch.ones_like(scores_V, dtype=torch.bool)
    if 0 < params.top_k < len(scores_V):
        is_kept_V = scores_V >= scores_V.topk(params.top_k).values[-1]
    if params.top_p < 1:
        is_kept_V = _is_in_top_p(scores_V.masked_fill(~is_kept_V, -math.inf).softmax(0), params.top_p)
    if params.min_p > 0:
        is_kept_V &= scores_V >= math.log(params.min_p)
    return is_kept_V


def _is_in_top_p(probs_V: Tensor, top_p: float) -> Tensor:
    falling_V = probs_V.sort(descending=True).values
    num_kept = (probs_V.sum() - falling_V.cumsum(0) + falling_V > 1 - top_p).sum().clamp(min=1)
    least_1 = falling_V.gather(0, num_kept[None] - 1)
    # Of equally likely tokens the first ones go.
    is_more_V, is_tied_V = probs_V > least_1, probs_V == least_1
    num_behind_V = is_tied_V.sum() - is_tied_V.cumsum(0)
    return is_more_V | (is_tied_V & (num_behind_V < num_kept - is_more_V.sum()))
