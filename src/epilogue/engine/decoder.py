"""Decoder: steps of one token each, captured once in a CUDA graph and replayed token after token.

A step of many small kernels is bound by launching them, not by running them. A graph launches them at once, but is tied
to addresses and shapes: so the texts that move are copied into slots whose tables stay where they are, and copied anew
when their pages change, every PAGE_TOKENS tokens or so.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.kernels.paged_attention import Backend as PagedBackend
from epilogue.model import (
    MPT,
    EvictionBounds,
    PagePool,
    PageTable,
    Segment,
    TokenResults,
    TokenTables,
    run_tokens,
)

Step = Callable[[], TokenResults]
Capture = Callable[[Step], Step]
"""Makes of a step one that does the same at the same addresses, and whose results are those of the latest call."""

_WARM_UPS = 2


def capture_graph(step: Step) -> Step:
    """Capture a step in a CUDA graph.

    The step runs before, so that kernels are compiled and caches filled: it must not matter how often it runs.

    Raises:
        RuntimeError: it cannot be captured.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Others may use the device meanwhile: a server copies what was read of a book in another thread.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = step()

    def replay() -> TokenResults:
        graph.replay()
        return results

    return replay


@dataclass(frozen=True)
class _Content:
    """What of a table a slot holds a copy of."""

    table: ref[PageTable]
    ids_LKP: Tensor
    norms_LKP: Tensor
    version: int
    page: int
    """Into which the next token falls. The norms of those before it do not change any more."""

    @classmethod
    def of(cls, table: PageTable) -> "_Content":
        version = table.ids_LKP._version
        return cls(ref(table), table.ids_LKP, table.norms_LKP, version, table.num_tokens // PAGE_TOKENS)

    def is_still(self, table: PageTable) -> bool:
        return (
            self.table() is table
            and self.ids_LKP is table.ids_LKP
            and self.norms_LKP is table.norms_LKP
            and self.version == table.ids_LKP._version
            and self.page == table.num_tokens // PAGE_TOKENS
        )


class _Slots:
    """The tables of one captured step, and which text is in which of them."""

    def __init__(self, tables: TokenTables, head_dim: int) -> None:
        self.tables, self.head_dim = tables, head_dim
        self.replay: Step | None = None
        self._contents: list[_Content | None] = [None] * len(tables.ids_B)

    def bind(self, texts: Sequence[PageTable]) -> list[int]:
        """Bring every text into a slot, the one it was in if it was in one; the slots."""
        known = {id(content.table()): slot for slot, content in enumerate(self._contents) if content is not None}
        free = iter(sorted(set(range(len(self._contents))) - {known.get(id(table)) for table in texts}))
        slots = [known[id(table)] if id(table) in known else next(free) for table in texts]
        for slot, table in zip(slots, texts, strict=True):
            self._refresh(slot, table)
        return slots

    def holds(self, table: PageTable) -> bool:
        """Whether the first slot has a copy of this table as it is."""
        content = self._contents[0]
        return content is not None and content.is_still(table)

    def _refresh(self, slot: int, table: PageTable) -> None:
        content = self._contents[slot]
        if content is not None and content.is_still(table):
            return
        self._contents[slot] = None  # should an interruption fall into the copy
        content = _Content.of(table)
        self.tables.load(slot, table, self.head_dim)
        self._contents[slot] = content


@dataclass(frozen=True)
class _Ahead:
    """A pass over a token that was guessed, running or run."""

    table: ref[PageTable]
    num_tokens: int
    before_V: Tensor
    """The logits that it was guessed from."""
    token_1: Tensor
    """On the host."""
    slots: _Slots
    results: TokenResults


class Decoder:
    """Runs steps of one token each. Keeps a captured step for every number of texts and width of their tables.

    A step can be run ahead, for a token that is only guessed (``run_ahead``): its key and value lie behind the text's,
    where nothing counts them until the token is chosen (``confirm``).

    The model's weights must stay where they are.

    Args:
        model: in evaluation mode.
        pool: of all texts.
        bounds: pages' scores are kept up with, if pages are to be evicted later.
        epsilon: what may be left out of a probability.
        capture: ``capture_graph``; another one runs the steps as it likes. A step that cannot be captured is run as it
            is, with a warning.
        backend: of paged attention; chosen by device and dtype if None.
        most_captures: kept at a time, the latest ones.
    """

    def __init__(
        self,
        model: MPT,
        pool: PagePool,
        bounds: EvictionBounds | None,
        *,
        epsilon: float,
        capture: Capture = capture_graph,
        backend: PagedBackend | None = None,
        most_captures: int = 8,
    ) -> None:
        self.model, self.pool, self.bounds, self.epsilon = model, pool, bounds, epsilon
        self.capture, self.backend, self.most_captures = capture, backend, most_captures
        self._slots: OrderedDict[tuple[int, int], _Slots] = OrderedDict()
        self._ahead: _Ahead | None = None

    def can_take(self, segments: Sequence[Segment]) -> bool:
        """Whether these steps are of one token each, within learned positions."""
        config = self.model.config
        most_tokens = config.max_seq_len if config.has_position_embedding else None
        return all(
            segment.num_tokens == 1 and (most_tokens is None or segment.stop <= most_tokens) for segment in segments
        )

    def step(self, segments: Sequence[Segment], ids: list[int]) -> tuple[Tensor, Tensor]:
        """Take in one token of every segment; x_BC and logits_BV.

        Keys, values and what bounds them are in the pages and tables then; ``num_tokens`` is left alone.

        Args:
            segments: of different texts, for which ``can_take`` holds, with pages for their tokens.
            ids: the tokens.
        """
        self._ahead = None  # its results are overwritten
        tables = [segment.table for segment in segments]
        slots = self._slots_for(len(tables), max(table.ids_LKP.shape[2] for table in tables))
        order = slots.bind(tables)
        by_slot = sorted(range(len(order)), key=order.__getitem__)
        slots.tables.set_tokens([ids[i] for i in by_slot], [segments[i].stop for i in by_slot])
        if slots.replay is None:
            slots.replay = self._captured(slots.tables)
        results = slots.replay()
        for slot, segment in zip(order, segments, strict=True):
            _take_in(segment, results, slot)
        # A copy: the next step writes its results to the same place.
        x_BC, logits_BV = (torch.stack([x[slot] for slot in order]) for x in (results.x_BC, results.logits_BV))
        return x_BC, logits_BV

    def run_ahead(self, table: PageTable, logits_V: Tensor, token_1: Tensor) -> Tensor:
        """Start a step for a text's next token before it is chosen; the logits it is chosen from, on the host.

        They are waited for, the step is not. Nothing is started where the text was not the last one to be moved, alone,
        or where its tables would have to be copied first.

        Args:
            table: with a page of its own for the token.
            logits_V: what the model expects behind the table's tokens.
            token_1: the guess, on the device.
        """
        self._ahead = None
        host_V, host_1 = (x.to("cpu", non_blocking=True) for x in (logits_V, token_1))
        arrived = torch.cuda.Event() if logits_V.is_cuda else None
        if arrived is not None:
            arrived.record()
        slots = self._slots.get(self._key(1, table.ids_LKP.shape[2]))
        if slots is not None and slots.replay is not None and slots.holds(table):
            slots.tables.ids_B.copy_(token_1)
            slots.tables.num_keys_B.fill_(table.num_tokens + 1)
            self._ahead = _Ahead(ref(table), table.num_tokens, logits_V, host_1, slots, slots.replay())
        if arrived is not None:
            arrived.synchronize()
        return host_V

    def confirm(self, segment: Segment, before_V: Tensor, token_id: int) -> Tensor | None:
        """What comes behind a token that was chosen, if a step for it was run ahead; else None. As ``step`` otherwise.

        Args:
            segment: of that token.
            before_V: the logits that it was chosen from, as ``run_ahead`` was given them.
            token_id: the token.
        """
        ahead, self._ahead, table = self._ahead, None, segment.table
        if ahead is None or ahead.table() is not table or not ahead.slots.holds(table):
            return None
        if (ahead.num_tokens, int(ahead.token_1)) != (table.num_tokens, token_id) or ahead.before_V is not before_V:
            return None
        _take_in(segment, ahead.results, 0)
        return ahead.results.logits_BV[0].clone()

    def _key(self, batch: int, width: int) -> tuple[int, int]:
        return batch, 1 << (width - 1).bit_length()

    def _slots_for(self, batch: int, width: int) -> _Slots:
        """Slots for so many texts; wide enough, and not much wider."""
        key = self._key(batch, width)
        if key not in self._slots:
            config = self.model.config
            tables = TokenTables.empty(config, batch=batch, num_pages=key[1], device=self.model.device)
            self._slots[key] = _Slots(tables, config.head_dim)
        self._slots.move_to_end(key)
        if len(self._slots) > self.most_captures:
            self._slots.popitem(last=False)
        return self._slots[key]

    def _captured(self, tables: TokenTables) -> Step:
        def step() -> TokenResults:
            return run_tokens(self.model, self.pool, tables, self.bounds, epsilon=self.epsilon, backend=self.backend)

        try:
            return self.capture(step)
        except RuntimeError as error:
            warnings.warn(f"the step is not captured in a graph and runs slowly: {error}", stacklevel=2)
            return step


def _take_in(segment: Segment, results: TokenResults, slot: int) -> None:
    """Keep up with what bounds the new token's page, and count what was looked at."""
    table, scores_LBH = segment.table, results.scores_LBH
    page, inside = divmod(table.num_tokens, PAGE_TOKENS)
    news = [(table.norms_LKP, results.norms_LBK)]
    if scores_LBH is not None:
        news.append((table.scores_LHP, scores_LBH))
    for kept, new in news:
        column = kept[..., page]
        column.copy_(torch.maximum(column, new[:, slot]) if inside else new[:, slot])
    if segment.reads is not None:
        dense = len(table.ids_LKP) * segment.stop
        segment.reads.count(results.visited_BH[slot], dense, results.mass_BH[slot])
