"""Texts that are being written: each asks for its next token, and all that wait move in one step."""

from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from epilogue.engine.sampling import Sampler
from epilogue.engine.sequence import Sequence
from epilogue.engine.steps import Stepper

OnLogits = Callable[[Tensor], None]
"""Shown logits_V before a token is chosen from them."""


class Streams:
    """Writes texts, and lets them come along when another one moves.

    Args:
        stepper: moves texts through the model.
        lookup: whether to try ahead what followed before.
        most_positions: that the model has learned, if it has.
    """

    def __init__(self, stepper: Stepper, *, lookup: bool, most_positions: int | None) -> None:
        self.lookup = lookup
        self._stepper, self._most_positions = stepper, most_positions
        self._texts: list[Sequence] = []

    def waiting(self) -> Iterator[Sequence]:
        """Texts that can come along: nobody knows yet what comes next in them."""
        return (text for text in list(self._texts) if text.logits_V is None and not text.is_closed)

    def step(self, sequence: Sequence) -> None:
        """Move a text, and all that wait.

        Raises:
            CapacityError: no page for it.
        """
        self._stepper.step(sequence, self.waiting())

    def write(
        self, sequence: Sequence, sampler: Sampler, *, eos_id: int | None, on_logits: OnLogits | None
    ) -> Generator[int, None, None]:
        """Tokens, each put behind the text before it is yielded; errors are those of ``Engine.stream``."""
        most_tokens = sampler.params.max_new_tokens
        self._texts.append(sequence)
        try:
            for left in reversed(range(most_tokens)):
                sequence.check_open()
                if sequence.num_tokens == self._most_positions:
                    return
                while sequence.logits_V is None:
                    self.step(sequence)
                logits_V = sequence.logits_V
                # Alone, and not for the last token: nobody waits behind a guess.
                if left and len(self._texts) == 1 and not self.lookup:
                    logits_V = self._stepper.run_ahead(sequence, sampler.guess)
                if on_logits is not None:
                    on_logits(logits_V)
                token_id = sampler.sample(logits_V, sequence.ids)
                if token_id == eos_id:
                    return
                self._stepper.take(sequence, token_id)
                # Not for the first token: nobody waits longer for it.
                if self.lookup and 1 < left < most_tokens - 1:
                    sequence.draft = sequence.drafts.after(sequence.ids, most=left - 1)
                yield token_id
        finally:
            self._texts.remove(sequence)
