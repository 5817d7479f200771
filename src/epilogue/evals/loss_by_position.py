"""Loss by position in the book: bits per byte, and whether a token far in is predicted better than an early one."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.errors import BookError, RequestError
from epilogue.model import MPT
from epilogue.text import Tokenizer

# The fewest tokens that stand before the predicted ones of each bucket.
EDGES = (0, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
# Tokens whose logits are in memory at once: V numbers each.
_HEAD_TOKENS = 4096


@dataclass(kw_only=True)
class LossByPosition:
    """Sums over books, by how many tokens stand before the predicted one; an entry of each list a bucket of EDGES."""

    nats: list[float] = field(default_factory=lambda: [0.0] * len(EDGES))
    num_tokens: list[int] = field(default_factory=lambda: [0] * len(EDGES))
    num_bytes: list[int] = field(default_factory=lambda: [0] * len(EDGES))
    num_books: int = 0

    @property
    def loss(self) -> float:
        """Nats a token over everything."""
        return sum(self.nats) / sum(self.num_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the text over everything."""
        return sum(self.nats) / math.log(2) / sum(self.num_bytes)

    def buckets(self) -> list[tuple[int, int, float, float]]:
        """(first position, tokens, nats a token, bits per byte) of every bucket that has tokens."""
        rows = zip(EDGES, self.num_tokens, self.nats, self.num_bytes, strict=True)
        return [(edge, n, nats / n, nats / math.log(2) / max(1, size)) for edge, n, nats, size in rows if n]


@torch.inference_mode()
def token_losses(model: MPT, ids: list[int]) -> Tensor:
    """loss_T in nats on the CPU, fp32: how surprising every token but the first was, given all before it.

    One pass over the whole text: attention memory grows with its length, logits are taken in pieces.

    Raises:
        ValueError: fewer than two ids.
    """
    if len(ids) < 2:
        raise ValueError(f"token_losses needs two ids or more, got {len(ids)}")
    ids_BT = torch.tensor([ids], device=model.device)
    x_BTC = model.transformer(ids_BT[:, :-1])
    losses: list[Tensor] = []
    for start in range(0, x_BTC.shape[1], _HEAD_TOKENS):
        logits_TV = model.head(x_BTC[0, start : start + _HEAD_TOKENS]).float()
        targets_T = ids_BT[0, 1 + start : 1 + start + len(logits_TV)]
        losses.append(F.cross_entropy(logits_TV, targets_T, reduction="none").cpu())
    return torch.cat(losses)


def loss_by_position(
    model: MPT,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    context_tokens: int,
    on_book: Callable[[LossByPosition], None] = lambda sums: None,
) -> LossByPosition:
    """Read each text from its start, up to ``context_tokens`` tokens, and sum the losses by position.

    Args:
        model: in eval mode.
        tokenizer: the model's own.
        texts: held-out books.
        context_tokens: tokens of each to read at most.
        on_book: called behind every book with the sums so far.

    Raises:
        BookError: no text has two tokens.
        RequestError: a context that is longer than the model's learned positions.
        ValueError: a context below two tokens.

    The first token of a text is given and not predicted: neither its loss nor its bytes count.
    """
    if context_tokens < 2:
        raise ValueError(f"context_tokens must be at least 2, got {context_tokens}")
    if model.config.has_position_embedding and context_tokens > model.config.max_seq_len:
        raise RequestError(
            f"a context of {context_tokens} tokens is asked for and the model has learned positions for "
            f"{model.config.max_seq_len}; ask for at most that"
        )
    sums = LossByPosition()
    for text in texts:
        ids = tokenizer.encode(text)[:context_tokens]
        if len(ids) < 2:
            continue
        _add(sums, token_losses(model, ids), [len(tokenizer.token_bytes(i)) for i in ids[1:]])
        on_book(sums)
    if not sums.num_books:
        raise BookError("there is no text of two tokens or more to evaluate on; give longer books")
    return sums


def _add(sums: LossByPosition, loss_T: Tensor, sizes: list[int]) -> None:
    """Add one book: loss_T[i] and sizes[i], its bytes, are of a token with i + 1 tokens before it."""
    sums.num_books += 1
    bounds = [edge - 1 for edge in EDGES[1:]]
    for bucket, (start, end) in enumerate(zip([0, *bounds], [*bounds, len(loss_T)], strict=True)):
        part = loss_T[start : max(start, end)]
        sums.nats[bucket] += part.double().sum().item()
        sums.num_tokens[bucket] += len(part)
        sums.num_bytes[bucket] += sum(sizes[start:end])
