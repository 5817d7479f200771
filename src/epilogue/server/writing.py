"""One continuation as it is written: tokens in, settled text out, with stop strings and banned phrases seen to."""

import math
from collections.abc import Generator
from dataclasses import replace

from torch import Tensor

from epilogue.engine import Engine, SamplingParams, Sequence
from epilogue.server.protocol import Ended, Generation, Piece, Reason, TokenLogprobs
from epilogue.text import TextStream, Tokenizer
from epilogue.text.phrases import PhraseGuard


class Writing:
    """Writes behind a text that has been read, one token a call.

    Args:
        index: which of the request's continuations it is.
        engine: whose streams move together.
        sequence: this continuation's own.
        generation: what was asked for.
        params: its settings, with this continuation's seed.
        tokenizer: the model's.
    """

    def __init__(
        self,
        index: int,
        engine: Engine,
        sequence: Sequence,
        *,
        generation: Generation,
        params: SamplingParams,
        tokenizer: Tokenizer,
    ) -> None:
        self.index, self.engine, self.sequence = index, engine, sequence
        self.params, self.tokenizer = params, tokenizer
        self.num_logprobs = generation.num_logprobs
        self.reason: Reason | None = None
        self._start = sequence.num_tokens
        self._text = TextStream(tokenizer, generation.stop, keeps_stop=generation.keeps_stop)
        self._guard = PhraseGuard(tokenizer, generation.banned_phrases)
        self._bans: dict[int, set[int]] = {}
        """By position, tokens that began a banned phrase there."""
        self._expected: dict[int, Tensor] = {}
        """logprobs_V by position, of tokens that were not told yet."""
        self._num_told = 0
        self._tokens = self._stream(params)

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return self.sequence.num_tokens - self._start

    def advance(self) -> list[Piece | Ended]:
        """Write one token; what is to be told now.

        Raises:
            EpilogueError: as ``Engine.stream``.
        """
        try:
            token_id = next(self._tokens)
        except StopIteration:
            return self._finish("length" if self.num_tokens >= self.params.max_new_tokens else "stop")
        if count := self._guard.push(token_id):
            self._take_back(count)
            return []
        return self._tell(self._guard.release())

    def end(self, reason: Reason) -> list[Piece | Ended]:
        """Stop here, with all that is written."""
        return self._finish(reason)

    def close(self) -> None:
        """Leave the stream; the sequence stays open."""
        self._tokens.close()

    def _stream(self, params: SamplingParams) -> Generator[int, None, None]:
        return self.engine.stream(
            self.sequence,
            params,
            eos_id=self.tokenizer.eos_id,
            num_tokens=self.tokenizer.vocab_size,
            on_logits=None if self.num_logprobs is None else self._note,
        )

    def _take_back(self, count: int) -> None:
        """Go back to before a banned phrase; what began it may not stand there again."""
        position = self.sequence.num_tokens - count
        self._bans = {place: ids for place, ids in self._bans.items() if place <= position}
        self._bans.setdefault(position, set()).add(self.sequence.ids[position])
        self._tokens.close()
        self.engine.truncate(self.sequence, position)
        self._tokens = self._go_on(position)

    def _go_on(self, position: int) -> Generator[int, None, None]:
        """The rest of the stream, whose first token is none that is banned there."""
        params, left = self.params, self.params.max_new_tokens - self.num_tokens
        banned = dict(params.logit_bias) | dict.fromkeys(self._bans[position], -math.inf)
        yield from self._stream(replace(params, max_new_tokens=1, logit_bias=banned))
        if self.sequence.num_tokens > position:
            yield from self._stream(replace(params, max_new_tokens=left - 1))

    def _tell(self, token_ids: list[int]) -> list[Piece | Ended]:
        text, told = "", list[TokenLogprobs]()
        for token_id in token_ids:
            if (logprobs_V := self._expected.pop(self._start + self._num_told, None)) is not None:
                told.append(self._logprobs(token_id, logprobs_V))
            self._num_told += 1
            text += self._text.push(token_id)
            if self._text.stopped:
                return [*self._piece(text, told), *self._end("stop")]
        return self._piece(text, told)

    def _finish(self, reason: Reason) -> list[Piece | Ended]:
        events = self._tell(self._guard.finish())
        return events if self.reason else [*events, *self._piece(self._text.finish(), []), *self._end(reason)]

    def _end(self, reason: Reason) -> list[Piece | Ended]:
        self.reason = reason
        self._tokens.close()
        return [Ended(self.index, reason, self.num_tokens, self.sequence.seed or 0)]

    def _piece(self, text: str, told: list[TokenLogprobs]) -> list[Piece | Ended]:
        return [Piece(self.index, text, tuple(told))] if text or told else []

    def _note(self, logits_V: Tensor) -> None:
        self._expected[self.sequence.num_tokens] = logits_V[: self.tokenizer.vocab_size].float().log_softmax(0)

    def _logprobs(self, token_id: int, logprobs_V: Tensor) -> TokenLogprobs:
        top = logprobs_V.topk(min(self.num_logprobs or 0, len(logprobs_V)))
        likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return TokenLogprobs(token_id, float(logprobs_V[token_id]), likeliest)
