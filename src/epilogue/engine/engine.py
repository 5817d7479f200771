"""Engine: reads texts in chunks and writes on, token by token, any number of them at once."""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from collections.abc import Sequence as Several
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from epilogue.checkpoint import Checkpoint, fingerprint, load_checkpoint
from epilogue.engine.capacity import available_bytes, chunk_tokens_for, copies_pay, pages_that_fit
from epilogue.engine.known_bounds import known_bounds
from epilogue.engine.pages import Pages
from epilogue.engine.prefixes import Prefixes, common_tokens
from epilogue.engine.sampling import Sampler
from epilogue.engine.sampling_params import SamplingParams
from epilogue.engine.scoring import Scores, score_chunks
from epilogue.engine.sequence import Sequence, checked_ids
from epilogue.engine.stats import Stats, gather_stats
from epilogue.engine.steps import Stepper
from epilogue.engine.streams import OnLogits, Streams
from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage
from epilogue.model import MPT, SPACINGS, EvictionBounds, PagePool, PageTable, Reads, check_spacings, eviction_bounds

OnProgress = Callable[[int, int], None]
"""Told, after every chunk, how many of how many tokens have been read."""

_MOST_TOKENS = 2**22


class Engine:
    """Runs one model over texts. Texts share pages where they begin alike, and steps where they are written together.

    Not for several threads at once: whoever calls an iterator moves all texts that are being written by one step.

    Args:
        model: is put into evaluation mode and must stay in it.
        storage: how keys and values are kept.
        epsilon: the share of a query's probability that far keys may hold and be left out, and be forgotten; certified.
            0 looks at everything and forgets nothing.
        chunk_tokens: tokens of a long text that go through the model at once; another reader waits no longer. None:
            1,024 on a CPU; elsewhere 8,192, or 12,288 where that takes little of the memory.
        undo_tokens: pages are forgotten so much later that a text can be cut by that many tokens, or opened again with
            them changed, without being read anew.
        lookup: try ahead what followed when a text said the same before, where that has been right of late: passes are
            fewer, and tokens are drawn from the same distributions. None: on a CPU in float32 or wider. In narrower
            weights the rounding of a wider pass changes tokens; on a GPU steps of one token are graphs, and cheaper.
        spacings: of bookmarks, for changes further back: the text is read anew from the bookmark before them
            (``model.bookmarks``); () for none.
        bounds: of this very model and storage, if they are known; else computed, in some seconds for a large model.
        coded_head: on a CPU in float32, multiply by 8-bit codes of the head (``MPT.keep_copies``).
        num_pages: size of the pool; as many as memory allows if None.
        available_bytes: how much memory a device has left.

    Raises:
        ValueError: ``chunk_tokens`` is less than 1, ``undo_tokens`` than 0, or ``epsilon`` not in [0, 1), or
            spacings are no multiples of pages and of each other.
    """

    def __init__(
        self,
        model: MPT,
        *,
        storage: Storage = "float32",
        epsilon: float = 1e-6,
        chunk_tokens: int | None = None,
        undo_tokens: int = 1024,
        lookup: bool | None = None,
        spacings: Several[int] = SPACINGS,
        bounds: EvictionBounds | None = None,
        coded_head: bool | None = None,
        num_pages: int | None = None,
        available_bytes: Callable[[torch.device], int] = available_bytes,
    ) -> None:
        available = available_bytes(model.device)
        chunk_tokens = chunk_tokens_for(model, available=available) if chunk_tokens is None else chunk_tokens
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        if undo_tokens < 0:
            raise ValueError(f"undo_tokens must be at least 0, got {undo_tokens}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1), got {epsilon}")
        check_spacings(spacings)
        self.model, self.epsilon, self.chunk_tokens = model.eval(), epsilon, chunk_tokens
        if copies_pay(model, available=available):
            model.keep_copies(coded_head=coded_head)
        if num_pages is None:
            available = available_bytes(model.device)  # beside the copies
            num_pages = pages_that_fit(model, storage, chunk_tokens=chunk_tokens, available=available)
        self.bounds = (bounds or eviction_bounds(model, storage)) if epsilon > 0 else None
        self.pages = Pages(PagePool(model.config, num_pages=num_pages, storage=storage, device=model.device))
        self._stepper = Stepper(
            model,
            self.pages,
            self.bounds,
            epsilon=epsilon,
            chunk_tokens=chunk_tokens,
            undo_tokens=undo_tokens,
            spacings=spacings,
        )
        is_exact_enough = model.device.type == "cpu" and model.dtype.itemsize >= 4
        self._streams = Streams(
            self._stepper,
            lookup=is_exact_enough if lookup is None else lookup,
            most_positions=self._stepper.most_positions,
        )
        self._prefixes = Prefixes()
        self._sequences: WeakSet[Sequence] = WeakSet()

    @classmethod
    def load(
        cls, source: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None, **options: Any
    ) -> "Engine":
        """An engine on a checkpoint's folder or hub id; ``options`` are the constructor's."""
        return cls.on(load_checkpoint(source, device=device, dtype=dtype), **options)

    @classmethod
    def on(
        cls, checkpoint: Checkpoint, *, storage: Storage = "float32", epsilon: float = 1e-6, **options: Any
    ) -> "Engine":
        """An engine on a loaded checkpoint; what eviction relies on is kept beside it (``known_bounds``)."""
        bounds = known_bounds(checkpoint.model, storage, checkpoint.directory) if epsilon > 0 else None
        return cls(checkpoint.model, storage=storage, epsilon=epsilon, bounds=bounds, **options)

    @cached_property
    def fingerprint(self) -> str:
        """What model this is (``checkpoint.fingerprint``); found out when first asked for."""
        return fingerprint(self.model)

    def exceeds_trained_length(self, num_tokens: int) -> bool:
        """Whether a text of so many tokens is longer than any the model was trained on (ALiBi reads it even so)."""
        return num_tokens > self.model.config.max_seq_len

    def open_book(self, ids: Iterable[int], *, room_tokens: int = 0, on_progress: OnProgress | None = None) -> Sequence:
        """Read a text from its beginning, or from where an open text begins to differ.

        Args:
            ids: the text.
            room_tokens: how many tokens are meant to be added to it; that they fit is checked now.
            on_progress: called after every chunk.

        Raises:
            ValueError: no ids, ids outside the vocabulary, or a negative room.
            CapacityError: text and room do not fit; nothing has been allocated or computed.
        """
        sequence = self.enter(ids, room_tokens=room_tokens)
        try:
            self._read(sequence, on_progress)
        except BaseException:
            self.close(sequence)
            raise
        return sequence

    def enter(self, ids: Iterable[int], *, room_tokens: int = 0) -> Sequence:
        """A text as ``open_book`` would open it, of which nothing is read yet that no other text has.

        Raises:
            ValueError: as ``open_book``.
            CapacityError: as ``open_book``.
        """
        text = self._checked(ids)
        if not text:
            raise ValueError("there are no tokens to read")
        if room_tokens < 0:
            raise ValueError(f"room_tokens must be at least 0, got {room_tokens}")
        sequence = self._add(text, self._shared_prefix(text))
        try:
            self._stepper.check_fits(sequence, len(text) + room_tokens)
        except BaseException:
            self.close(sequence)
            raise
        return sequence

    def advance(self, sequence: Sequence) -> bool:
        """Read one more chunk of a text; whether it is known now what comes next.

        Raises:
            ValueError: the sequence is closed.
            CapacityError: other texts took the pages meanwhile; what is unread stays pending.
        """
        sequence.check_open()
        if sequence.logits_V is None:
            self._streams.step(sequence)
        self._prefixes.add(sequence)
        return sequence.logits_V is not None

    def append(self, sequence: Sequence, ids: Iterable[int], *, on_progress: OnProgress | None = None) -> None:
        """Read more text behind a sequence; no ids change nothing.

        Interrupted, the sequence has all of the new text, and what is unread of it is read when it is next used.

        Raises:
            ValueError: ids outside the vocabulary; the sequence is as it was.
            CapacityError: they do not fit, and the sequence is as it was; or other texts took the pages meanwhile, and
                what is unread stays pending.
        """
        sequence.check_open()
        if text := self._checked(ids):
            self._stepper.check_fits(sequence, sequence.num_tokens + len(text))
            sequence.extend(text)
        self._read(sequence, on_progress)

    def stream(
        self,
        sequence: Sequence,
        params: SamplingParams,
        *,
        eos_id: int | None = None,
        num_tokens: int | None = None,
        on_logits: OnLogits | None = None,
    ) -> Generator[int, None, None]:
        """Write on, yielding each token as it is chosen and put behind the sequence.

        Ends with the end of text (which is neither yielded nor kept), after ``params.max_new_tokens``, or where learned
        positions end. It may be closed or left at any token: what was yielded is in the sequence, and streaming again
        with the seed it tells goes on as if there had been no stop. Several streams move together: each step takes one
        token of every stream that waits for it, and a chunk of one text that is being read.

        Args:
            sequence: grows by what is yielded; ``sequence.seed`` tells the seed in effect.
            params: how to choose, and how many.
            eos_id: the end of text, if there is one.
            num_tokens: the tokenizer's size where the embedding is padded past it; no id from there on is chosen.
            on_logits: is shown what the model expects before each token is chosen from it.

        Raises:
            ValueError: the sequence is closed.
            EpilogueError: the model's logits are not finite (when the token is asked for).
            CapacityError: no page is left for the next token; everything so far is kept.
        """
        sequence.check_open()
        sampler = Sampler(params, eos_id=eos_id, num_tokens=num_tokens)
        sequence.seed = sampler.seed
        return self._streams.write(sequence, sampler, eos_id=eos_id, on_logits=on_logits)

    def fork(self, sequence: Sequence) -> Sequence:
        """Another text that begins as this one does: no token is read again, no page copied until one of them grows."""
        sequence.check_open()
        twin = self._add(sequence.ids, self.pages.fork(sequence.table))
        twin.logits_V, twin.drafts = sequence.logits_V, sequence.drafts.fork()
        self._prefixes.add(twin)
        return twin

    def truncate(self, sequence: Sequence, position: int, *, on_progress: OnProgress | None = None) -> None:
        """Go back to the first ``position`` tokens.

        Where pages that matter there were evicted since, it is read again from the bookmark before, or from the start.

        Raises:
            ValueError: the sequence is shorter, or ``position`` is less than 1.
            CapacityError: no pages to read it again; what is unread stays pending.
        """
        sequence.check_open()
        if not 1 <= position <= sequence.num_tokens:
            raise ValueError(f"position must be in 1..{sequence.num_tokens}, got {position}")
        if position < sequence.num_tokens:
            self._cut(sequence, position)
        self._read(sequence, on_progress)

    def revise(
        self, sequence: Sequence, ids: Iterable[int], *, room_tokens: int = 0, on_progress: OnProgress | None = None
    ) -> None:
        """Make a text another one. What both begin with is kept, back to a bookmark at worst; the rest is read.

        Interrupted, the sequence has all of the new text, and what is unread of it is read when it is next used.

        Raises:
            ValueError: no ids, ids outside the vocabulary, or a negative room; the sequence is as it was.
            CapacityError: text and room do not fit; the sequence has what is common to both.
        """
        sequence.check_open()
        text = self._checked(ids)
        if not text or room_tokens < 0:
            raise ValueError(f"there must be tokens to read and room for at least 0, got {len(text)} and {room_tokens}")
        common = common_tokens(text, sequence.ids)
        if common < sequence.num_tokens:
            self._cut(sequence, common)
        self._stepper.check_fits(sequence, len(text) + room_tokens)
        if common < len(text):
            sequence.extend(text[common:])
        self._read(sequence, on_progress)

    def adopt(self, ids: Iterable[int], table: PageTable, logits_V: Tensor | None) -> Sequence:
        """A text whose pages are filled already (``pages.adopt``), with what comes next if that is known.

        Raises:
            ValueError: ids outside the vocabulary or fewer than the table's, or a page is missing that matters.
        """
        text = self._checked(ids)
        if len(text) < table.num_tokens or not self._stepper.can_cut(table, table.num_tokens):
            raise ValueError("the table is not that of these tokens")
        sequence = self._add(text, table)
        sequence.logits_V = logits_V
        self._prefixes.add(sequence)
        return sequence

    def latest_cut(self, table: PageTable, num_tokens: int) -> int:
        """How much of a table's first tokens is left to go on from: all, up to a bookmark, or nothing."""
        return self._stepper.latest_cut(table, num_tokens)

    def _cut(self, sequence: Sequence, position: int) -> None:
        """In an order in which the text is the old one or the new one, wherever an interruption falls."""
        # One token goes through the model again, to know what comes next.
        kept, table = max(0, min(sequence.table.num_tokens, position - 1)), sequence.table
        kept = self._stepper.latest_cut(table, kept)
        self._prefixes.remove(sequence, but_tokens=kept)
        sequence.forget_next()
        sequence.drafts = sequence.drafts.fork()
        self.pages.truncate(table, kept)
        del sequence.ids[position:]

    def score(self, ids: Iterable[int], *, after: Sequence | None = None) -> Tensor:
        """logprobs_T, fp32 on the CPU: of every token but the first (of all, with a text before them).

        Args:
            ids: the text to score.
            after: an open text that stands before it; is not changed.

        Raises:
            ValueError: nothing to score, or ids outside the vocabulary.
            CapacityError: not enough pages; nothing is kept.
        """
        text = self._checked(ids)
        if len(text) < (2 if after is None else 1):
            raise ValueError(f"{len(text)} tokens leave nothing to score")
        scored = self._add(text[:1], None) if after is None else self.fork(after)
        try:
            targets = text[1:] if after is None else text
            self._stepper.check_fits(scored, scored.num_tokens + len(targets))
            self._read(scored, None)
            return torch.cat([scores.logprobs_T for scores in self.score_chunks(scored, targets)])
        finally:
            self.close(scored)

    def score_chunks(self, sequence: Sequence, ids: Iterable[int], *, top: int = 0) -> Iterator[Scores]:
        """Read more text behind a sequence that has been read, and tell chunk by chunk how likely it was.

        Args:
            sequence: grows by the text.
            ids: the text.
            top: how many of the likeliest tokens to tell beside each.

        Raises:
            ValueError: ids outside the vocabulary, or the sequence has not been read.
            CapacityError: not enough pages; the sequence has some of the tokens.
        """
        sequence.check_open()
        if sequence.logits_V is None:
            raise ValueError("a text must be read before what follows is scored")
        text = self._checked(ids)
        return score_chunks(self._stepper, sequence, text, others=self._streams.waiting, top=top)

    def close(self, sequence: Sequence) -> None:
        """Give a text's pages back now; it cannot be used any more."""
        sequence.is_closed = True
        self._prefixes.remove(sequence)
        self.pages.release(sequence.table)
        self._sequences.discard(sequence)

    def most_tokens(self) -> int:
        """The longest text that fits while no other is open; some million tokens at most."""
        lengths = range(PAGE_TOKENS, self._stepper.most_positions or _MOST_TOKENS, PAGE_TOKENS)
        num_fit = bisect_right(lengths, self.pages.num_free, key=lambda n: int(self._stepper.most_pages(n).sum()))
        return lengths[num_fit - 1] if num_fit else 0

    def stats(self) -> Stats:
        """What is held and what has been done, now."""
        return gather_stats(self.pages, self._sequences)

    def _add(self, text: Iterable[int], table: PageTable | None) -> Sequence:
        table = self.pages.empty_table() if table is None else table
        sequence = Sequence(text, table, Reads.none(self.model.config.n_heads))
        self._sequences.add(sequence)
        return sequence

    def _shared_prefix(self, text: list[int]) -> PageTable | None:
        """The longest run of full pages that an open text has, whole enough to go on from."""
        best, found = 0, None
        for num_tokens, other in self._prefixes.longest(text):
            if num_tokens <= best:
                break
            if (cut := self._stepper.latest_cut(other.table, num_tokens)) > best:
                best, found = cut, other
        return self.pages.fork(found.table, best) if found else None

    def _read(self, sequence: Sequence, on_progress: OnProgress | None) -> None:
        """Run the model over what it has not seen of a text, so that it is known what comes next."""
        total = sequence.num_pending
        while sequence.logits_V is None:
            self._streams.step(sequence)
            self._prefixes.add(sequence)
            if on_progress is not None:
                on_progress(total - sequence.num_pending, total)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        return checked_ids(ids, self.model.config.vocab_size)
