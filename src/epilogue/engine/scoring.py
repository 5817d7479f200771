"""What a model says of tokens that are already there."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from epilogue.engine.sequence import Sequence
from epilogue.engine.steps import Stepper

# Tokens whose logits stand in memory together.
_ROWS = 64


class Scores(NamedTuple):
    """Of T tokens, all on the CPU."""

    logprobs_T: Tensor
    """fp32: how likely each was."""
    top_TN: Tensor
    """int64: the likeliest ids instead of it, the likeliest first."""
    top_logprobs_TN: Tensor
    """fp32: how likely those were."""


def score_chunks(
    stepper: Stepper, text: Sequence, ids: list[int], *, others: Callable[[], Iterable[Sequence]], top: int
) -> Iterator[Scores]:
    """The scores, chunk by chunk, of tokens that are put behind a text that knows what it expects.

    Args:
        stepper: moves the text.
        text: grows by the tokens.
        ids: at least one.
        others: tells, at every step, which texts may come along.
        top: how many of the likeliest to tell.

    Raises:
        CapacityError: not enough pages; the text has some of the tokens.
    """
    for start in range(0, len(ids), stepper.chunk_tokens):
        chunk = ids[start : start + stepper.chunk_tokens]
        assert text.logits_V is not None
        before_1V = text.logits_V[None]
        text.extend(chunk)
        x_TC = stepper.step(text, others(), wants_all=True)
        with torch.inference_mode():
            parts = [_scores(before_1V, chunk[:1], top)]
            for i in range(0, len(chunk) - 1, _ROWS):
                parts.append(_scores(stepper.model.head(x_TC[i : len(chunk) - 1][:_ROWS]), chunk[i + 1 :][:_ROWS], top))
        yield Scores(*map(torch.cat, zip(*parts, strict=True)))


def _scores(logits_TV: Tensor, ids: list[int], top: int) -> Scores:
    logprobs_TV = logits_TV.float().log_softmax(-1)
    ids_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    likeliest = logprobs_TV.topk(top, dim=1)
    return Scores(logprobs_TV.gather(1, ids_T1)[:, 0].cpu(), likeliest.indices.cpu(), likeliest.values.cpu())
