"""What a model says of tokens that are already there."""

from collections.abc import Iterable

import torch
from torch import Tensor

from epilogue.engine.sequence import Sequence
from epilogue.engine.steps import Stepper
from epilogue.model import MPT

# Tokens whose logits stand in memory together.
_ROWS = 64


def logprobs(stepper: Stepper, text: Sequence, ids: list[int], others: Iterable[Sequence]) -> Tensor:
    """logprobs_T, fp32 on the CPU, of tokens that are put behind a text that knows what it expects.

    Args:
        stepper: moves the text.
        text: grows by the tokens.
        ids: at least one.
        others: texts that may come along in every step.

    Raises:
        CapacityError: not enough pages; the text has some of the tokens.
    """
    parts = []
    for start in range(0, len(ids), stepper.chunk_tokens):
        chunk = ids[start : start + stepper.chunk_tokens]
        assert text.logits_V is not None
        before_1V = text.logits_V[None]
        text.extend(chunk)
        x_TC = stepper.step(text, others)
        parts.append(_of_row(before_1V, chunk[:1]))
        parts += _of_rows(stepper.model, x_TC[:-1], chunk[1:])
    return torch.cat(parts)


@torch.inference_mode()
def _of_rows(model: MPT, x_TC: Tensor, ids: list[int]) -> list[Tensor]:
    starts = range(0, len(ids), _ROWS)
    return [_of_row(model.head(x_TC[i : i + _ROWS]), ids[i : i + _ROWS]) for i in starts]


@torch.inference_mode()
def _of_row(logits_TV: Tensor, ids: list[int]) -> Tensor:
    ids_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    return logits_TV.float().log_softmax(-1).gather(1, ids_T1)[:, 0].cpu()
