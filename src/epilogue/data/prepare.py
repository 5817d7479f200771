"""Books to shards: learn a tokenizer if none is given, then encode every book whole."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from epilogue.data.shards import Shards, ShardWriter, require_absent
from epilogue.data.sources import iterate_documents
from epilogue.errors import BookError
from epilogue.text import Tokenizer, train_tokenizer

# Enough books for a vocabulary of this kind to settle; its memory is the distinct words, its time grows with the text.
_VOCABULARY_BOOKS = 400


def prepare_shards(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 8192,
    on_book: Callable[[str, int], None] = lambda title, num_tokens: None,
) -> Shards:
    """Write the shards of all books under ``sources``.

    Args:
        sources: .jsonl, .jsonl.zst and book files, or folders of them.
        folder: where the shards go; must not exist.
        tokenizer: learned from the first books with ``vocab_size`` entries if None.
        vocab_size: entries of a learned vocabulary.
        on_book: called behind every book with its title and tokens.

    Raises:
        BookError: a source cannot be read, or there is no book.
        ShardError: the folder exists.
    """
    require_absent(Path(folder))  # learning a vocabulary takes minutes
    if tokenizer is None:
        texts = (document.text for document in islice(iterate_documents(sources), _VOCABULARY_BOOKS))
        tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
    writer = ShardWriter(Path(folder), tokenizer)
    num_books = 0
    for document in iterate_documents(sources):
        ids = tokenizer.encode(document.text)
        writer.add(ids, id=document.id, title=document.title, num_bytes=len(document.text.encode()))
        on_book(document.title, len(ids))
        num_books += 1
    if not num_books:
        raise BookError(
            f"there is no book in {', '.join(map(str, sources)) or 'nothing'}; give files or folders of books"
        )
    writer.finish()
    return Shards(folder)
