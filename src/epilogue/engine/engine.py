"""Engine: reads a text in chunks and writes on, token by token. One sequence at a time."""

from collections.abc import Callable, Generator, Iterable
from operator import index

import torch

from epilogue.engine.capacity import available_bytes, check_capacity, tokens_that_fit
from epilogue.engine.sampling import Sampler, SamplingParams
from epilogue.engine.sequence import Sequence
from epilogue.errors import CapacityError
from epilogue.model import MPT, KVCache

OnProgress = Callable[[int, int], None]
"""Told, after every chunk, how many of how many tokens have been read."""


class Engine:
    """Runs one model over texts. Sequences are independent; one may rest while another grows.

    Args:
        model: is put into evaluation mode and must stay in it.
        chunk_tokens: tokens that go through the model at once when reading; bounds the memory of activations.
        available_bytes: how much memory a device has left.

    Raises:
        ValueError: ``chunk_tokens`` is less than 1.
    """

    def __init__(
        self,
        model: MPT,
        *,
        chunk_tokens: int = 512,
        available_bytes: Callable[[torch.device], int] = available_bytes,
    ) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        self.model = model.eval()
        self.chunk_tokens = chunk_tokens
        self._available_bytes = available_bytes

    def exceeds_trained_length(self, num_tokens: int) -> bool:
        """Whether a text of so many tokens is longer than any the model was trained on (ALiBi reads it even so)."""
        return num_tokens > self.model.config.max_seq_len

    def tokens_that_fit(self) -> int:
        """Tokens, read and written together, that memory and the model's positions have room for right now."""
        available = self._available_bytes(self.model.device)
        return tokens_that_fit(self.model, chunk_tokens=self.chunk_tokens, available=available)

    def read(self, ids: Iterable[int], *, room_tokens: int, on_progress: OnProgress | None = None) -> Sequence:
        """Read a text from its beginning.

        Args:
            ids: the text.
            room_tokens: how many tokens can be added to it later; their memory is taken now.
            on_progress: called after every chunk.

        Returns:
            A sequence that holds the text; its memory is freed with it.

        Raises:
            ValueError: no ids, ids outside the vocabulary, or a negative room.
            CapacityError: text and room do not fit; nothing has been allocated or computed.
        """
        text = self._checked(ids)
        if not text:
            raise ValueError("there are no tokens to read")
        if room_tokens < 0:
            raise ValueError(f"room_tokens must be at least 0, got {room_tokens}")
        model, capacity_tokens = self.model, len(text) + room_tokens
        available = self._available_bytes(model.device)
        check_capacity(model, capacity_tokens, chunk_tokens=self.chunk_tokens, available=available)
        cache = KVCache(model.config, capacity_tokens=capacity_tokens, dtype=model.dtype, device=model.device)
        sequence = Sequence(text, cache)
        self._read_pending(sequence, on_progress)
        return sequence

    def extend(self, sequence: Sequence, ids: Iterable[int], *, on_progress: OnProgress | None = None) -> None:
        """Read more text behind a sequence; no ids change nothing.

        Interrupted, the sequence has all of the new text, and what is unread of it is read when it is next used.

        Raises:
            ValueError: ids outside the vocabulary; the sequence is as it was.
            CapacityError: more tokens than it has room for; the sequence is as it was.
        """
        text = self._checked(ids)
        if len(text) > sequence.room_tokens:
            raise CapacityError(
                f"{len(text):,} tokens were to be added to {sequence.num_tokens:,}, but there is room for"
                f" {sequence.room_tokens:,}; read the text again with more room_tokens"
            )
        if text:
            sequence.append(text)
        self._read_pending(sequence, on_progress)

    def write(
        self,
        sequence: Sequence,
        params: SamplingParams,
        *,
        eos_id: int | None = None,
        num_tokens: int | None = None,
    ) -> Generator[int, None, None]:
        """Write on, yielding each token as it is chosen and put behind the sequence.

        Ends with the end of text (which is neither yielded nor kept), after ``params.max_new_tokens``, or when the
        room is used up. It may be closed or left at any token: what was yielded is in the sequence, and writing
        again goes on as if there had been no stop. That holds for the random numbers too: unless the seed in
        ``params`` is another one, they go on where the last write left them (``sequence.sampler``).

        Args:
            sequence: grows by what is yielded.
            params: how to choose, and how many.
            eos_id: the end of text, if there is one.
            num_tokens: the tokenizer's size where the embedding is padded past it; no id from there on is chosen.

        Raises:
            EpilogueError: the model's logits are not finite (when the token is asked for).
            ValueError: an impossible ``eos_id`` or ``num_tokens``.
        """
        last = sequence.sampler
        follows = last if last is not None and last.params.seed == params.seed else None
        sequence.sampler = Sampler(params, eos_id=eos_id, num_tokens=num_tokens, follows=follows)
        return self._write(sequence, sequence.sampler, eos_id)

    def _write(self, sequence: Sequence, sampler: Sampler, eos_id: int | None) -> Generator[int, None, None]:
        # Nothing of inference_mode may be open at the yield: it would be in force in the caller's code.
        for _ in range(sampler.params.max_new_tokens):
            if sequence.room_tokens == 0:
                return
            token_id = self._choose(sequence, sampler)
            if token_id == eos_id:
                return
            sequence.append([token_id])
            yield token_id

    @torch.inference_mode()
    def _choose(self, sequence: Sequence, sampler: Sampler) -> int:
        self._read_pending(sequence, None)
        assert sequence.logits_V is not None
        return sampler.sample(sequence.logits_V, sequence.ids)

    @torch.inference_mode()
    def _read_pending(self, sequence: Sequence, on_progress: OnProgress | None) -> None:
        """Run the model over tokens that it has not seen, so that the sequence knows what comes next."""
        model, cache = self.model, sequence.cache
        if sequence.logits_V is None and sequence.num_pending == 0:
            # An interruption fell between the last token's keys and its logits.
            cache.truncate(cache.length - 1)
        first, last = cache.length, sequence.num_tokens
        for start in range(first, last, self.chunk_tokens):
            stop = min(start + self.chunk_tokens, last)
            ids_BT = torch.tensor([sequence.ids[start:stop]], device=model.device)
            if stop < last:
                model.transformer(ids_BT, cache)
            else:
                sequence.logits_V = model(ids_BT, cache, last_only=True)[0, -1]
            if on_progress is not None:
                on_progress(stop - first, last - first)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        text = [index(token_id) for token_id in ids]
        vocab_size = self.model.config.vocab_size
        for position, token_id in enumerate(text):
            if not 0 <= token_id < vocab_size:
                raise ValueError(f"id {token_id} at position {position} is outside the vocabulary of {vocab_size}")
        return text
