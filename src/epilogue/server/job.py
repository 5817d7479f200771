"""A request on its way through the engine: taken up, read chunk by chunk, written token by token, ended."""

import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from epilogue.engine import Engine, Scores, Sequence
from epilogue.engine.sampling_params import NUM_SEEDS
from epilogue.errors import RequestError
from epilogue.server.known_scores import KnownScores, joined
from epilogue.server.protocol import Begun, Done, Ended, Event, Failed, Generation, Reading, Scored, TokenLogprobs
from epilogue.server.writing import Writing
from epilogue.text import Tokenizer

Listener = Callable[[Event], None]
"""Told what happens to a request, in the engine's thread; must not wait."""


class Job:
    """One request. Everything but ``cancel`` belongs to the engine's thread."""

    def __init__(
        self, generation: Generation, listener: Listener, *, on_cancel: Callable[[], None] = lambda: None
    ) -> None:
        self.generation = generation
        self._listener, self._on_cancel = listener, on_cancel
        self.is_cancelled = False
        self.turn_s = 0.0
        """When it was last taken up."""
        self.sequence: Sequence | None = None
        self.writings: list[Writing] = []
        self.ids: list[int] = []
        """Of the prompt, once they are known."""
        self.is_begun = False
        """Whether it takes part in rounds."""
        self.book_id: str | None = None
        """What its text is called when it is done."""
        self._to_score: list[int] = []
        self._scores: Iterator[Scores] | None = None
        self._scored: list[Scores] = []
        self._num_scored = self._num_read_tokens = 0
        self.created_s = time.monotonic()
        self.begun_s = self.read_s = self.first_token_s = 0.0
        self.num_prompt_tokens = self.num_cached_tokens = 0

    def cancel(self) -> None:
        """Let the work end within one step; from any thread."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self._on_cancel()

    @property
    def num_read_tokens(self) -> int:
        """Tokens of the prompt that went through the model so far."""
        if self.sequence is None:
            return self._num_read_tokens
        num_unread = max(0, self.sequence.num_pending) + len(self._to_score) - self._num_scored
        total = self.num_prompt_tokens - self.num_cached_tokens
        return total if self.is_read else max(0, total - num_unread)

    @property
    def num_written_tokens(self) -> int:
        """Of all continuations, so far."""
        return sum(writing.num_tokens for writing in self.writings)

    @property
    def seconds_left(self) -> float | None:
        """How long reading will go on, at the pace so far; None before that is known."""
        num_read, num_total = self.num_read_tokens, self.num_prompt_tokens - self.num_cached_tokens
        return (time.monotonic() - self.begun_s) * (num_total - num_read) / num_read if num_read else None

    @property
    def is_read(self) -> bool:
        """Whether it is known what comes after the prompt."""
        return bool(self.writings)

    @property
    def is_done(self) -> bool:
        """Whether all continuations are complete."""
        return self.is_read and all(writing.reason for writing in self.writings)

    def prepare(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        """Turn the prompt into ids; for any thread.

        Raises:
            RequestError: an id is outside the vocabulary.
        """
        self.ids = prompt_ids(self.generation, tokenizer, vocab_size=vocab_size)

    def enter(self, engine: Engine, known: KnownScores) -> None:
        """Take the prompt up: nothing is read yet. May be done again, with other texts open.

        Raises:
            CapacityError: it does not fit.
        """
        if self.sequence is not None:
            engine.close(self.sequence)
            self.sequence = None
        start, room_tokens = len(self.ids), self.generation.params.max_new_tokens
        if self.generation.scores_prompt:
            # Behind its first token, which nothing is known of, and those that were scored before.
            scores = known.beginning(self.ids, top=self.generation.num_logprobs or 0)
            self._scored, start = [scores], 1 + len(scores.logprobs_T)
        self.sequence = engine.enter(self.ids[:start], room_tokens=len(self.ids) - start + room_tokens)
        self._to_score = self.ids[start:]

    def begin(self) -> None:
        """Take part in rounds from now on."""
        assert self.sequence is not None
        self.is_begun, self.begun_s = True, time.monotonic()
        self.num_prompt_tokens, self.num_cached_tokens = len(self.ids), self.sequence.table.num_tokens
        self.tell(Begun(self.num_prompt_tokens, self.num_cached_tokens))
        if self.generation.scores_prompt:
            self.tell(Scored((TokenLogprobs(self.ids[0], -math.inf, ()), *_told(self._scored[0], self.ids[1:]))))

    def read(self, engine: Engine, tokenizer: Tokenizer, known: KnownScores) -> None:
        """Read a chunk; after the last one writing begins.

        Raises:
            CapacityError: other texts took the pages.
        """
        assert self.sequence is not None
        if self._scores is not None and (scores := next(self._scores, None)) is not None:
            self.tell(Scored(_told(scores, self._to_score[self._num_scored :])))
            self._num_scored += len(scores.logprobs_T)
            self._scored.append(scores)
        is_read = engine.advance(self.sequence)
        self.tell(Reading(self.num_read_tokens, self.num_prompt_tokens - self.num_cached_tokens, self.seconds_left))
        if is_read and self._num_scored < len(self._to_score):
            top = self.generation.num_logprobs or 0
            self._scores = self._scores or engine.score_chunks(self.sequence, self._to_score, top=top)
        elif is_read:
            if self._num_scored:
                known.add(self.ids, joined(self._scored))
            self.read_s = time.monotonic() - self.begun_s
            self._begin_writing(engine, tokenizer)

    def write(self) -> None:
        """Write a token of every continuation that is not complete.

        Raises:
            EpilogueError: as ``Engine.stream``.
        """
        for writing in self.writings:
            if writing.reason is None:
                events = writing.advance()
                self.first_token_s = self.first_token_s or time.monotonic()
                for event in events:
                    self.tell(event)

    def finish(self) -> None:
        """Say that all is done, or cancelled with what was written."""
        for writing in self.writings:
            for event in [] if writing.reason else writing.end("cancelled"):
                self.tell(event)
        for index in range(len(self.writings), self.generation.num_texts):  # it never came to these
            self.tell(Ended(index, "cancelled", num_tokens=0, seed=0))
        since_s = time.monotonic() - self.begun_s if self.is_begun else 0.0
        self.tell(Done(self.read_s, since_s - self.read_s))
        self._let_go()

    def fail(self, error: Exception) -> None:
        """Say that it cannot go on."""
        for writing in self.writings:
            writing.close()
        self.tell(Failed(error))
        self._let_go()

    def tell(self, event: Event) -> None:
        """Let the listener know."""
        self._listener(event)

    def texts(self) -> Iterator[Sequence]:
        """All that it holds in the engine."""
        yield from [writing.sequence for writing in self.writings] or ([self.sequence] if self.sequence else [])

    def _let_go(self) -> None:
        """Clients may ask for its figures long afterwards; a book is much to remember for that."""
        self._num_read_tokens = self.num_read_tokens
        self.sequence, self.writings, self.ids = None, [], []
        self._to_score, self._scores, self._scored = [], None, []
        self._listener, self._on_cancel = _to_nobody, _to_nobody

    def _begin_writing(self, engine: Engine, tokenizer: Tokenizer) -> None:
        assert self.sequence is not None
        asked, first = self.generation, self.sequence
        params = asked.params
        seed = secrets.randbelow(NUM_SEEDS) if params.seed is None else params.seed
        grammars = [
            asked.grammar.begin(first.num_tokens, written=asked.grammar_written) if asked.grammar else None
            for _ in range(asked.num_texts)
        ]
        sequences = [first, *(engine.fork(first) for _ in range(asked.num_texts - 1))]
        self.writings = [
            Writing(
                index,
                engine,
                sequence,
                generation=asked,
                params=replace(params, seed=(seed + index) % NUM_SEEDS, grammar=grammar),
                tokenizer=tokenizer,
            )
            for index, (sequence, grammar) in enumerate(zip(sequences, grammars, strict=True))
        ]


def _to_nobody(*_: Event) -> None:
    """Whoever listened has heard the end."""


def _told(scores: Scores, ids: list[int]) -> tuple[TokenLogprobs, ...]:
    rows = zip(ids, scores.logprobs_T.tolist(), scores.top_TN.tolist(), scores.top_logprobs_TN.tolist(), strict=False)
    return tuple(TokenLogprobs(i, x, tuple(zip(top, values, strict=True))) for i, x, top, values in rows)


def prompt_ids(generation: Generation, tokenizer: Tokenizer, *, vocab_size: int) -> list[int]:
    """The ids to read: memory and prompt, the prompt's oldest left out where the request's own limit says so.

    Raises:
        RequestError: an id is outside the vocabulary, or the text is no Unicode.
    """
    _check_whole(generation.memory)
    if isinstance(generation.prompt, tuple):
        ids, memory = list(generation.prompt), tokenizer.encode(generation.memory)
        if wrong := [i for i in ids if not 0 <= i < vocab_size]:
            raise RequestError(f"the prompt holds id {wrong[0]}, outside the vocabulary of {vocab_size}")
    else:
        _check_whole(generation.prompt)
        # Together, for a seam would change tokens; apart only where the prompt is cut.
        ids, memory = tokenizer.encode(generation.memory + generation.prompt), []
    if generation.max_context_tokens is not None:
        room = generation.max_context_tokens - generation.params.max_new_tokens
        if len(memory) + len(ids) > max(1, room):
            memory = memory or tokenizer.encode(generation.memory)
            prompt = ids if isinstance(generation.prompt, tuple) else tokenizer.encode(generation.prompt)
            ids = prompt[-max(1, room - len(memory)) :]
    # An empty story begins where any text does: behind the end of another one.
    return memory + ids or [tokenizer.eos_id]


def _check_whole(text: str) -> None:
    """JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds half of a surrogate pair at character {error.start}; send whole characters"
        ) from error
