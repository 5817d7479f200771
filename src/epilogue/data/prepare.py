"""Books to shards: learn a tokenizer if none is given, then encode every book whole."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import xxhash

from epilogue.data.publish import partial_of
from epilogue.data.shards import Shards
from epilogue.data.sources import Document, iterate_documents
from epilogue.data.writing import ShardWriter, require_absent
from epilogue.errors import BookError, CheckpointError
from epilogue.text import Tokenizer, encode_in_order, train_tokenizer

# Counted up when other ids or other documents come of the same sources.
_PIPELINE = "prepare-1"
# Enough books for a vocabulary of this kind to settle; its memory is the distinct words, its time grows with the text.
_VOCABULARY_BOOKS = 400
_LEARNED = "learned.json"

OnBook = Callable[[str, int], None]


def prepare_shards(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 8192,
    num_workers: int = 1,
    on_book: OnBook = lambda title, num_tokens: None,
) -> Shards:
    """Write the shards of all books under ``sources``.

    A run that was interrupted leaves ``folder.partial``; the same call goes on with it, past a vocabulary that was
    learned from the same books too, and gives the bytes of an uninterrupted run.

    Args:
        sources: .jsonl, .jsonl.zst and book files, or folders of them.
        folder: where the shards go; must not exist.
        tokenizer: learned from the first books with ``vocab_size`` entries if None.
        vocab_size: entries of a learned vocabulary.
        num_workers: processes that encode; the shards are the same for any number.
        on_book: called behind every book with its title and tokens.

    Raises:
        BookError: a source cannot be read, or there is no book.
        ShardError: the folder exists.
    """
    require_absent(Path(folder))  # learning a vocabulary takes minutes
    learned_from = None
    if tokenizer is None:
        tokenizer, learned_from = _learned_tokenizer(sources, partial_of(Path(folder)), vocab_size)
    writer = ShardWriter(Path(folder), tokenizer, pipeline=_PIPELINE)
    if learned_from is not None:
        (partial_of(Path(folder)) / _LEARNED).write_text(learned_from)
    return write_shards(iterate_documents(sources), writer, num_workers=num_workers, on_book=on_book)


def write_shards(
    documents: Iterable[Document],
    writer: ShardWriter,
    *,
    num_workers: int = 1,
    on_book: OnBook = lambda title, num_tokens: None,
) -> Shards:
    """Encode documents in their order and finish the writer's folder; ``num_workers`` and ``on_book`` as above.

    Raises:
        BookError: there is no document, or one cannot be read.
        CapacityError: a worker died.
    """
    num_books = 0

    def not_kept() -> Iterator[tuple[Document, str]]:
        nonlocal num_books
        for document in documents:
            kept = writer.keeps(id=document.id, title=document.title, text=document.text.encode())
            if kept is None:
                yield document, document.text
            else:
                num_books += 1
                on_book(document.title, kept.num_tokens - 1)

    for document, ids in encode_in_order(not_kept(), writer.tokenizer, num_workers=num_workers):
        writer.add(ids, id=document.id, title=document.title, text=document.text.encode())
        num_books += 1
        on_book(document.title, len(ids))
    if not num_books:
        raise BookError("there is no book in what was given; give files or folders of books")
    writer.finish()
    return Shards(writer.folder)


def _learned_tokenizer(sources: Sequence[str | Path], partial: Path, vocab_size: int) -> tuple[Tokenizer, str]:
    """A tokenizer of the first books, from an interrupted run if it learned the same; and a note of what it is of."""
    digest = xxhash.xxh3_128()

    def texts() -> Iterator[str]:
        digest.reset()
        for document in islice(iterate_documents(sources), _VOCABULARY_BOOKS):
            digest.update(f"{len(document.text)} {document.text}".encode())
            yield document.text

    def note() -> str:
        return json.dumps({"texts_xxh3": digest.hexdigest(), "vocab_size": vocab_size})

    if (partial / _LEARNED).exists():
        for _ in texts():
            pass
        try:
            if (partial / _LEARNED).read_text() == note():
                return Tokenizer.from_file(partial), note()
        except (CheckpointError, ValueError):  # damaged: learn it again
            pass
    tokenizer = train_tokenizer(texts(), vocab_size=vocab_size)
    return tokenizer, note()
