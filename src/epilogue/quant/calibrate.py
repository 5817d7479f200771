"""Books to samples: what a model reads while it is quantised, so that errors go where they matter least."""

from collections.abc import Iterable

from epilogue.errors import BookError
from epilogue.text import Tokenizer


def book_samples(
    tokenizer: Tokenizer, texts: Iterable[str], *, num_samples: int, sequence_tokens: int
) -> list[list[int]]:
    """Token ids of at most so many samples.

    Every book is encoded whole and read from its beginning, as a reader does. Only where there are too few books do
    samples begin further in. No more books are read than it takes.

    Raises:
        BookError: no book has two tokens.
        ValueError: no samples, or samples of less than two tokens.
    """
    if num_samples < 1 or sequence_tokens < 2:
        raise ValueError(f"wanted 1 sample or more of 2 tokens or more, got {num_samples} of {sequence_tokens}")
    first: list[list[int]] = []
    later: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text)
        pieces = [ids[start : start + sequence_tokens] for start in range(0, len(ids), sequence_tokens)]
        first += [piece for piece in pieces[:1] if len(piece) > 1]
        later += [piece for piece in pieces[1:] if 2 * len(piece) >= sequence_tokens]
        if len(first) >= num_samples:
            break
    samples = (first + later)[:num_samples]
    if not samples:
        raise BookError("there is no text of two tokens or more to calibrate on; give longer books")
    return samples
