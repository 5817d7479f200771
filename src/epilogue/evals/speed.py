"""How fast a model reads and writes as its text grows, and how much of the machine that is.

One reading grows from length to length, so the longest costs what it would alone. At each length some tokens are
written on a fork of the text, which is closed again: nothing is read twice.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median

from torch import Tensor

from epilogue.engine import Engine, OnProgress, SamplingParams
from epilogue.engine import Sequence as Text
from epilogue.evals.machine import Ceilings, Clock, clock_of
from epilogue.model import MPT, Reads, bytes_per_key, read_flops

# The first has been computed when reading ends; the second gets pages of its own.
_WARM_UP_TOKENS = 2
_GROWTH_FROM, _GROWTH_TO = 8192, 65536


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """What one length costs."""

    num_tokens: int
    read_s: float
    """From the first token on."""
    stretch_tokens_per_s: float
    """Since the length before."""
    first_token_s: float
    """Until the first token was chosen, reading included."""
    token_s: float
    """A new token behind the text; the median."""
    dense_flops: int
    """That dense causal attention needs to read the text: the count the field's MFU is made of."""
    visited_flops: int
    """Those of the keys that were visited."""
    share_visited: float
    """Of all keys, in reading."""
    shares_visited: tuple[float, ...]
    """The same by query head, all layers together."""
    shares_held: tuple[float, ...]
    """Of all pages, by head of keys and values, all layers together."""
    omitted_mass: float
    """Largest certified share of a probability that was left out in reading."""
    token_bytes: float
    """Weights, and keys and values within reach, that a new token must read."""
    reach_tokens: tuple[tuple[int, ...], ...]
    """By layer and query head: how many keys a new token visits, at the most."""
    bytes_held: int
    """Of keys and values."""
    bytes_dense_bf16: int

    @property
    def tokens_per_s(self) -> float:
        """Read, from the first token on."""
        return self.num_tokens / self.read_s

    def mfu(self, ceilings: Ceilings) -> float:
        """Of reading, by dense FLOPs; can pass 1, because what cannot matter is not computed."""
        return self.dense_flops / self.read_s / ceilings.flop_per_s

    def visited_mfu(self, ceilings: Ceilings) -> float:
        """Of reading, by the FLOPs of the keys that were visited."""
        return self.visited_flops / self.read_s / ceilings.flop_per_s

    def mbu(self, ceilings: Ceilings) -> float:
        """Of writing, by the bytes that must be read."""
        return self.token_bytes / self.token_s / ceilings.read_bytes_per_s

    def share_reaching(self, distance_tokens: int) -> float:
        """Of all heads of all layers, those that a new token has look further back."""
        reaches = [reach for layer in self.reach_tokens for reach in layer]
        return sum(reach > distance_tokens for reach in reaches) / len(reaches)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the costs of the longest of some texts compare with the shortest's."""

    from_tokens: int
    to_tokens: int
    read_exponent: float
    """Of the power of the length that reading time follows, least squares over all lengths between."""
    token_ratio: float
    """Seconds a new token takes at the longest, over those at the shortest."""
    visited_ratio: float
    """Keys a new token visits at the longest, over those at the shortest."""
    share_reaching: float
    """Of all heads of all layers, those that at the longest look further back than the shortest is long."""


def measure_speed(
    engine: Engine,
    ids: Sequence[int],
    lengths: Sequence[int],
    *,
    new_tokens: int = 32,
    on_progress: OnProgress | None = None,
    now_s: Clock | None = None,
) -> Iterator[SpeedRow]:
    """Read a text to each of some lengths, write on at each, and tell what it cost as soon as it is known.

    Two chunks are read and closed again before the clock starts: on a GPU the first ones wait for compilation.

    Args:
        engine: with no open text that begins as this one, and without lookup: tokens are timed one by one.
        ids: as many as the longest length, or more.
        lengths: tokens, rising.
        new_tokens: timed at each length, behind two that warm up; chosen as `epilogue write` does.
        on_progress: called after every chunk that was read.
        now_s: in place of a clock that waits for the device.

    Raises:
        ValueError: lengths that do not rise or are longer than the text, or nothing to write.
        CapacityError: the longest does not fit with room to write; said before anything is read.
    """
    _check(ids, lengths, new_tokens)
    # A token is chosen when its logits are there, and what is computed ahead of it then is no part of its time.
    token_now_s = now_s or time.perf_counter
    now_s = now_s or clock_of(engine.model.device)
    most_tokens = lengths[-1] + _WARM_UP_TOKENS + new_tokens
    _warm_up(engine, ids[: min(lengths[-1], 2 * engine.chunk_tokens)], most_tokens)
    done, read_s, total = 0, 0.0, lengths[-1]

    def on_chunk(more: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done + more, total)

    text: Text | None = None
    try:
        for length in lengths:
            start_s = now_s()
            if text is None:
                text = engine.open_book(ids[:length], room_tokens=most_tokens - length, on_progress=on_chunk)
            else:
                engine.append(text, ids[done:length], on_progress=on_chunk)
            stretch_s = now_s() - start_s
            read_s += stretch_s
            yield _row(engine, text, read_s, (length - done) / stretch_s, new_tokens, token_now_s)
            done = length
    finally:
        if text is not None:
            engine.close(text)


def growth(rows: Sequence[SpeedRow]) -> Growth | None:
    """From 8,192 to 65,536 tokens, or from the shortest to the longest where fewer than two lengths lie there.

    None if there is one row or none.
    """
    between = [row for row in rows if _GROWTH_FROM <= row.num_tokens <= _GROWTH_TO]
    rows = between if len(between) > 1 else rows
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    return Growth(
        from_tokens=first.num_tokens,
        to_tokens=last.num_tokens,
        read_exponent=linear_regression(*_logarithms(rows)).slope,
        token_ratio=last.token_s / first.token_s,
        visited_ratio=_keys(last) / _keys(first),
        share_reaching=last.share_reaching(first.num_tokens),
    )


class _Reaches(Reads):
    """Reads that remember, besides, how far back each layer and head looked at the most, a token at a time."""

    def __init__(self, num_layers: int, num_heads: int, num_tokens: int) -> None:
        none = Reads.none(num_heads)
        super().__init__(none.visited_H, none.dense_H)
        self._num_layers, self._num_heads, self._num_tokens = num_layers, num_heads, num_tokens
        self._calls: list[tuple[int, Tensor]] = []

    def count(self, visited_H: Tensor, dense: int, omitted_mass: Tensor) -> None:
        """Count one call; the layers call in turn, or one call counts for all of them, which are told their mean."""
        super().count(visited_H, dense, omitted_mass)
        num_together = min(self._num_layers, max(1, round(dense / self._num_tokens)))
        # Told later: to ask now would make a GPU wait in the middle of what is timed.
        self._calls.append((num_together, visited_H // num_together))

    @property
    def by_layer(self) -> list[list[int]]:
        """Keys, by layer and head; waits for the device."""
        most = [[0] * self._num_heads for _ in range(self._num_layers)]
        layer = 0
        for num_together, reaches_H in self._calls:
            reaches = reaches_H.tolist()
            for _ in range(num_together):
                most[layer] = [max(pair) for pair in zip(most[layer], reaches, strict=True)]
                layer = (layer + 1) % self._num_layers
        return most


def _warm_up(engine: Engine, ids: Sequence[int], most_tokens: int) -> None:
    """Refuse what will not fit; then run everything once."""
    text = engine.open_book(ids, room_tokens=most_tokens - len(ids))
    try:
        _write(engine, text, text.reads, _WARM_UP_TOKENS, time.perf_counter)
    finally:
        engine.close(text)


def _row(
    engine: Engine, text: Text, read_s: float, stretch_tokens_per_s: float, new_tokens: int, now_s: Clock
) -> SpeedRow:
    config, stats = engine.model.config, engine.stats()
    reaches = _Reaches(config.n_layers, config.n_heads, text.num_tokens)
    times = _write(engine, text, reaches, _WARM_UP_TOKENS + new_tokens, now_s)
    reach_tokens = reaches.by_layer
    return SpeedRow(
        num_tokens=text.num_tokens,
        read_s=read_s,
        stretch_tokens_per_s=stretch_tokens_per_s,
        first_token_s=read_s + times[0],
        token_s=median(times[_WARM_UP_TOKENS:]),
        dense_flops=read_flops(config, text.num_tokens, visited_pairs=int(text.reads.dense_H.sum())),
        visited_flops=read_flops(config, text.num_tokens, visited_pairs=int(text.reads.visited_H.sum())),
        share_visited=text.reads.share,
        shares_visited=tuple((text.reads.visited_H / text.reads.dense_H).tolist()),
        shares_held=tuple(
            (text.table.ids_LKP >= 0).sum(dim=(0, 2)).div(config.n_layers * text.table.num_pages).tolist()
        ),
        omitted_mass=stats.omitted_mass,
        token_bytes=token_bytes(engine, reach_tokens),
        reach_tokens=tuple(map(tuple, reach_tokens)),
        bytes_held=stats.bytes_held,
        bytes_dense_bf16=stats.bytes_dense_bf16,
    )


def _write(engine: Engine, text: Text, reads: Reads, num_tokens: int, now_s: Clock) -> list[float]:
    """Seconds of each token written behind a text, which stays as it is."""
    params = SamplingParams(seed=0, max_new_tokens=num_tokens)
    twin = engine.fork(text)
    twin.reads = reads
    try:
        marks = [now_s(), *(now_s() for _ in engine.stream(twin, params))]
    finally:
        engine.close(twin)
    return [stop - start for start, stop in pairwise(marks)]


def token_bytes(engine: Engine, reach_tokens: Sequence[Sequence[int]]) -> float:
    """Bytes that one new token must read, if it looks so far back in each layer and query head.

    Query heads that share keys and values read them once. Of an embedding that is not the head too, one row is read,
    which is not counted; nor is what is written.
    """
    config = engine.model.config
    group = config.n_heads // config.kv_n_heads
    keys = sum(max(layer[i : i + group]) for layer in reach_tokens for i in range(0, config.n_heads, group))
    return _weight_bytes(engine.model) + keys * bytes_per_key(config, engine.pages.pool.storage)


def _weight_bytes(model: MPT) -> int:
    looked_up = {"transformer.wpe.weight"}
    if not model.config.tie_word_embeddings:
        looked_up.add("transformer.wte.weight")
    return sum(tensor.nbytes for name, tensor in model.state_dict().items() if name not in looked_up)


def _check(ids: Sequence[int], lengths: Sequence[int], new_tokens: int) -> None:
    if not lengths or lengths[0] < 1 or any(a >= b for a, b in pairwise(lengths)):
        raise ValueError(f"lengths must rise from 1 or more, got {list(lengths)}")
    if len(ids) < lengths[-1]:
        raise ValueError(f"a text of {len(ids)} tokens cannot be read to {lengths[-1]}")
    if new_tokens < 1:
        raise ValueError(f"new_tokens must be at least 1, got {new_tokens}")


def _keys(row: SpeedRow) -> int:
    return sum(map(sum, row.reach_tokens))


def _logarithms(rows: Sequence[SpeedRow]) -> tuple[list[float], list[float]]:
    return [math.log(row.num_tokens) for row in rows], [math.log(row.read_s) for row in rows]
