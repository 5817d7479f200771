"""Engine: reads texts in chunks and writes on, token by token, any number of them at once."""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from operator import index
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint
from epilogue.engine.capacity import available_bytes, check_fits, pages_that_fit
from epilogue.engine.pages import Pages
from epilogue.engine.prefixes import Prefixes
from epilogue.engine.sampling import Sampler
from epilogue.engine.sampling_params import SamplingParams
from epilogue.engine.scoring import Scores, score_chunks
from epilogue.engine.sequence import Sequence
from epilogue.engine.stats import Stats, gather_stats
from epilogue.engine.steps import Stepper
from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage
from epilogue.model import MPT, PagePool, PageTable, Reads, eviction_bounds

OnProgress = Callable[[int, int], None]
"""Told, after every chunk, how many of how many tokens have been read."""
OnLogits = Callable[[Tensor], None]
"""Shown logits_V before a token is chosen from them."""

_MOST_TOKENS = 2**22


class Engine:
    """Runs one model over texts. Texts share pages where they begin alike, and steps where they are written together.

    Not for several threads at once: whoever calls an iterator moves all texts that are being written by one step.

    Args:
        model: is put into evaluation mode and must stay in it.
        storage: how keys and values are kept.
        epsilon: the share of a query's probability that far keys may hold and be left out, and be forgotten; certified.
            0 looks at everything and forgets nothing.
        chunk_tokens: tokens of a long text that go through the model at once; another reader waits no longer.
        undo_tokens: pages are forgotten so much later that a text can be cut by that many tokens, or opened again with
            them changed, without being read anew.
        num_pages: size of the pool; as many as memory allows if None.
        available_bytes: how much memory a device has left.

    Raises:
        ValueError: ``chunk_tokens`` is less than 1, ``undo_tokens`` than 0, or ``epsilon`` not in [0, 1).
    """

    def __init__(
        self,
        model: MPT,
        *,
        storage: Storage = "float32",
        epsilon: float = 1e-6,
        chunk_tokens: int = 1024,
        undo_tokens: int = 1024,
        num_pages: int | None = None,
        available_bytes: Callable[[torch.device], int] = available_bytes,
    ) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        if undo_tokens < 0:
            raise ValueError(f"undo_tokens must be at least 0, got {undo_tokens}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1), got {epsilon}")
        self.model, self.epsilon, self.chunk_tokens = model.eval(), epsilon, chunk_tokens
        if num_pages is None:
            available = available_bytes(model.device)
            num_pages = pages_that_fit(model, storage, chunk_tokens=chunk_tokens, available=available)
        self.bounds = eviction_bounds(model, storage) if epsilon > 0 else None
        self.pages = Pages(PagePool(model.config, num_pages=num_pages, storage=storage, device=model.device))
        self._stepper = Stepper(
            model, self.pages, self.bounds, epsilon=epsilon, chunk_tokens=chunk_tokens, undo_tokens=undo_tokens
        )
        self._prefixes = Prefixes()
        self._sequences: WeakSet[Sequence] = WeakSet()
        self._streaming: list[Sequence] = []

    @classmethod
    def load(
        cls, source: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None, **options: Any
    ) -> "Engine":
        """An engine on a checkpoint's folder or hub id; ``options`` are the constructor's."""
        return cls(load_checkpoint(source, device=device, dtype=dtype).model, **options)

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
            self._check_capacity(sequence, len(text) + room_tokens)
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
            self._step(sequence)
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
            self._check_capacity(sequence, sequence.num_tokens + len(text))
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
        return self._stream(sequence, sampler, eos_id, on_logits)

    def _stream(
        self, sequence: Sequence, sampler: Sampler, eos_id: int | None, on_logits: OnLogits | None
    ) -> Generator[int, None, None]:
        self._streaming.append(sequence)
        try:
            for _ in range(sampler.params.max_new_tokens):
                sequence.check_open()
                if sequence.num_tokens == self._most_positions:
                    return
                while sequence.logits_V is None:
                    self._step(sequence)
                if on_logits is not None:
                    on_logits(sequence.logits_V)
                token_id = sampler.sample(sequence.logits_V, sequence.ids)
                if token_id == eos_id:
                    return
                sequence.extend([token_id])
                yield token_id
        finally:
            self._streaming.remove(sequence)

    def fork(self, sequence: Sequence) -> Sequence:
        """Another text that begins as this one does: no token is read again, no page copied until one of them grows."""
        sequence.check_open()
        twin = self._add(sequence.ids, self.pages.fork(sequence.table))
        twin.logits_V = sequence.logits_V
        self._prefixes.add(twin)
        return twin

    def truncate(self, sequence: Sequence, position: int, *, on_progress: OnProgress | None = None) -> None:
        """Go back to the first ``position`` tokens.

        Where pages that matter there were evicted since, the text is read again.

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

    def _cut(self, sequence: Sequence, position: int) -> None:
        """In an order in which the text is the old one or the new one, wherever an interruption falls."""
        # One token goes through the model again, to know what comes next.
        kept, table = min(sequence.table.num_tokens, position - 1), sequence.table
        kept = kept if self._stepper.can_cut(table, kept) else 0
        self._prefixes.remove(sequence, but_tokens=kept)
        sequence.logits_V = None
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
            self._check_capacity(scored, scored.num_tokens + len(targets))
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
        return score_chunks(self._stepper, sequence, text, others=self._waiting, top=top)

    def close(self, sequence: Sequence) -> None:
        """Give a text's pages back now; it cannot be used any more."""
        sequence.is_closed = True
        self._prefixes.remove(sequence)
        self.pages.release(sequence.table)
        self._sequences.discard(sequence)

    def most_tokens(self) -> int:
        """The longest text that fits while no other is open; some million tokens at most."""
        lengths = range(PAGE_TOKENS, self._most_positions or _MOST_TOKENS, PAGE_TOKENS)
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
        for num_tokens, other in self._prefixes.longest(text):
            if self._stepper.can_cut(other.table, num_tokens):
                return self.pages.fork(other.table, num_tokens)
        return None

    def _read(self, sequence: Sequence, on_progress: OnProgress | None) -> None:
        """Run the model over what it has not seen of a text, so that it is known what comes next."""
        total = sequence.num_pending
        while sequence.logits_V is None:
            self._step(sequence)
            if on_progress is not None:
                on_progress(total - sequence.num_pending, total)
        self._prefixes.add(sequence)

    def _step(self, sequence: Sequence) -> None:
        self._stepper.step(sequence, self._waiting())

    def _waiting(self) -> Iterator[Sequence]:
        """Texts that are being written and can come along."""
        return (text for text in list(self._streaming) if text.logits_V is None and not text.is_closed)

    @property
    def _most_positions(self) -> int | None:
        config = self.model.config
        return config.max_seq_len if config.has_position_embedding else None

    def _check_capacity(self, sequence: Sequence, num_tokens: int) -> None:
        """Refuse to let a text become so long if its pages may not suffice."""

        def pages_needed(tokens: int) -> int:
            return self.pages.needed(sequence.table, tokens, self._stepper.most_pages(tokens))

        check_fits(num_tokens, pages_needed, num_free=self.pages.num_free, most_positions=self._most_positions)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        text = [index(token_id) for token_id in ids]
        vocab_size = self.model.config.vocab_size
        for position, token_id in enumerate(text):
            if not 0 <= token_id < vocab_size:
                raise ValueError(f"id {token_id} at position {position} is outside the vocabulary of {vocab_size}")
        return text
