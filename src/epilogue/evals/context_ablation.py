"""The same target tokens read with shorter and longer contexts: what it is worth to have read further back.

Loss by position mixes two things, how much was read before a token and where in a book it stands. Here the targets stay
the same, the last ones of each book's first ``max(contexts)`` tokens, and only what is read before them changes. For a
context of C tokens, windows of C tokens lie half a window apart and the second half of each is scored (for the longest
contexts, as much of it as there are targets), so every target has at least C/2 and less than C tokens before it. It is
the form of sliding-window perplexity (Press et al., arXiv 2012.15832) with a stride of half a window.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from epilogue.errors import BookError, RequestError
from epilogue.evals.loss_by_position import token_losses
from epilogue.model import MPT
from epilogue.text import Tokenizer

_Z95 = 1.96


@dataclass(frozen=True, kw_only=True)
class ContextRow:
    """One context length over all books."""

    context_tokens: int
    loss: float
    """Nats a token."""
    bits_per_byte: float
    change: float
    """Bits per byte more than with the shortest context: the mean over books."""
    change_error: float
    """Half the width of that mean's 95% interval, over books as draws; nan for one book."""


@dataclass(kw_only=True)
class ContextAblation:
    """Sums over the targets of every book, for each context."""

    contexts: tuple[int, ...]
    """Rising."""
    num_targets: int
    """Of each book."""
    nats: list[list[float]] = field(default_factory=list)
    """A row a book, an entry a context."""
    num_bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of each book's targets."""

    @property
    def num_books(self) -> int:
        """Books that were long enough."""
        return len(self.nats)

    def rows(self) -> list[ContextRow]:
        """Every context's figures; none before the first book."""
        if not self.nats:
            return []
        nats = torch.tensor(self.nats, dtype=torch.float64)
        size = torch.tensor(self.num_bytes, dtype=torch.float64)
        bits = nats / math.log(2) / size[:, None]
        changes = bits - bits[:, :1]
        errors = changes.std(0) * _Z95 / math.sqrt(self.num_books) if self.num_books > 1 else changes[0] * math.nan
        return [
            ContextRow(
                context_tokens=context,
                loss=float(nats[:, i].sum()) / (self.num_books * self.num_targets),
                bits_per_byte=float(nats[:, i].sum() / size.sum()) / math.log(2),
                change=float(changes[:, i].mean()),
                change_error=float(errors[i]),
            )
            for i, context in enumerate(self.contexts)
        ]


def context_ablation(
    model: MPT,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    contexts: Sequence[int],
    num_targets: int,
    on_book: Callable[[ContextAblation], None] = lambda ablation: None,
) -> ContextAblation:
    """Score the same tokens of every book that is long enough, once for each context.

    Args:
        model: in eval mode.
        tokenizer: the model's own.
        texts: held-out books; those with fewer tokens than the longest context are passed over.
        contexts: tokens of a window, even numbers.
        num_targets: tokens to score of each book: the last of its first ``max(contexts)``.
        on_book: called behind every book with the sums so far.

    Raises:
        BookError: no book is long enough.
        RequestError: targets that half a context does not divide, that no context reaches, or contexts longer than
            the model's learned positions.
    """
    ablation = ContextAblation(contexts=tuple(sorted(set(contexts))), num_targets=num_targets)
    _check(ablation, model)
    longest = ablation.contexts[-1]
    for text in texts:
        ids = tokenizer.encode(text)[:longest]
        if len(ids) < longest:
            continue
        ablation.nats.append([_nats(model, ids, context, num_targets) for context in ablation.contexts])
        ablation.num_bytes.append(sum(len(tokenizer.token_bytes(i)) for i in ids[-num_targets:]))
        on_book(ablation)
    if not ablation.num_books:
        raise BookError(f"no book has the {longest:,} tokens of the longest context; give longer books")
    return ablation


def _nats(model: MPT, ids: list[int], context: int, num_targets: int) -> float:
    """Of the last ``num_targets`` ids, read in windows of ``context``."""
    scored = min(context // 2, num_targets)
    ends = range(len(ids), len(ids) - num_targets, -scored)
    losses = (token_losses(model, ids[end - context : end])[-scored:] for end in ends)
    return sum(float(loss_T.double().sum()) for loss_T in losses)


def _check(ablation: ContextAblation, model: MPT) -> None:
    contexts, num_targets = ablation.contexts, ablation.num_targets
    if not contexts or contexts[0] < 2 or num_targets < 1:
        raise RequestError(f"contexts {contexts} and {num_targets} targets do not go; give lengths from 2 tokens on")
    for context in contexts:
        if context % 2 or num_targets % min(context // 2, num_targets) or 2 * num_targets > contexts[-1]:
            raise RequestError(
                f"{num_targets} targets cannot be scored in half windows of {context} tokens; give contexts and "
                "targets that are powers of two, and at most half as many targets as the longest context"
            )
    if model.config.has_position_embedding and contexts[-1] > model.config.max_seq_len:
        raise RequestError(
            f"a context of {contexts[-1]} tokens is asked for and the model has learned positions for "
            f"{model.config.max_seq_len}; ask for at most that"
        )
