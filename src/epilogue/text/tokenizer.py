"""Text to token ids and back, for byte-level BPE.

The ``tokenizers`` library splits and merges; this module adds what a program that reads books needs: a book is data
(the characters ``<|endoftext|>`` in a novel never become the end-of-text id), every id has its bytes (so that text can
be streamed without half characters), and a tokenizer has a fingerprint (so that token shards know who made them).
It does not download anything.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from epilogue.errors import CheckpointError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
_END_NAMES = (END_OF_TEXT, "</s>")
_FILE_NAME = "tokenizer.json"
_SMALLEST_VOCABULARY = 256 + 2  # every byte, and the two special tokens


def _byte_of_character() -> dict[int, int]:
    """The table of GPT-2's alphabet: bytes that print stand for themselves, the others for U+0100 onwards in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + i: byte for i, byte in enumerate(others)}


_BYTES = _byte_of_character()


class Tokenizer:
    """A byte-level BPE tokenizer: ``encode``, ``decode`` and the bytes of every id. Immutable; may be pickled.

    Args:
        definition: the content of a ``tokenizer.json``.

    Raises:
        CheckpointError: the definition is not JSON, not a tokenizer, or not a byte-level one.
    """

    def __init__(self, definition: str) -> None:
        try:
            library = tokenizers.Tokenizer.from_str(definition)
            parsed = json.loads(definition)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"the tokenizer definition cannot be read ({error}); give the tokenizer.json of the checkpoint"
            ) from error
        if not _is_byte_level(parsed.get("decoder")):
            kind = (parsed.get("decoder") or {}).get("type", "none")
            raise CheckpointError(f"the tokenizer has the decoder {kind}, only ByteLevel ones can be run here")
        # A book is data: without this, "<|endoftext|>" in its text would end it.
        library.encode_special_tokens = True
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._definition = definition
        canonical = json.dumps(parsed, sort_keys=True, separators=(",", ":"))
        self._fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self._token_bytes = _bytes_of_ids(library)
        self._eos_id = _end_id(library)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a ``tokenizer.json``, or the one in a directory.

        Raises:
            CheckpointError: the file is missing, unreadable or not a byte-level tokenizer.
        """
        file = Path(path)
        if file.is_dir():
            file = file / _FILE_NAME
        try:
            definition = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"no tokenizer can be read from {file} ({error}); give a tokenizer.json or a directory with one"
            ) from error
        try:
            return cls(definition)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Nothing is added, and the names of special tokens in the text stay plain text."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, special and unknown ids nothing.

        Raises:
            ValueError: an id is negative.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes an id stands for; none for special tokens and for ids past the vocabulary (padded embeddings).

        Raises:
            ValueError: the id is negative.
        """
        if token_id < 0:
            raise ValueError(f"a token id must be 0 or more, got {token_id}")
        return self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""

    def token_text(self, token_id: int) -> str:
        """What to show for one id: its text, with bytes that are no whole character written as ``\\xe2``."""
        return self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")

    def ids_containing(self, texts: Iterable[str]) -> frozenset[int]:
        """All ids in whose bytes one of the texts stands."""
        wanted = [text.encode() for text in texts if text]
        return frozenset(i for i, token in enumerate(self._token_bytes) if any(text in token for text in wanted))

    def save(self, path: str | Path) -> None:
        """Writes the definition to a file, or as ``tokenizer.json`` into an existing directory, all at once or not."""
        file = Path(path)
        if file.is_dir():
            file = file / _FILE_NAME
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(self._definition, encoding="utf-8")
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    @property
    def definition(self) -> str:
        """The content of the ``tokenizer.json``, as it was given."""
        return self._definition

    @property
    def vocab_size(self) -> int:
        """One more than the largest id (the model's embedding may have more rows)."""
        return len(self._token_bytes)

    @property
    def eos_id(self) -> int:
        """The id that ends a text: that of ``<|endoftext|>``, else of ``</s>``."""
        return self._eos_id

    @property
    def padding_id(self) -> int | None:
        """The id of ``<|padding|>``, if there is one."""
        return self._library.token_to_id(PADDING)

    def name_of(self, token_id: int) -> str | None:
        """How tokenizer.json writes an id; None past the vocabulary."""
        return self._library.id_to_token(token_id)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the definition, in hex; white space and key order of the file do not matter."""
        return self._fingerprint

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return (Tokenizer, (self._definition,))

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE vocabulary, with GPT-2's way of cutting words and no normalisation.

    ``<|endoftext|>`` gets id 0 and ``<|padding|>`` id 1, then come the 256 bytes. The vocabulary is smaller than asked
    for when the texts have too few distinct words. Memory: the distinct words of the texts, not the texts.

    Raises:
        ValueError: ``vocab_size`` cannot hold the bytes and the special tokens.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size must be at least {_SMALLEST_VOCABULARY}, got {vocab_size}")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library.to_str(pretty=True))


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    parts = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _bytes_of_ids(library: tokenizers.Tokenizer) -> list[bytes]:
    vocabulary = library.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added = library.get_added_tokens_decoder()
    for token, token_id in vocabulary.items():
        if token_id not in added:
            table[token_id] = token.translate(_BYTES).encode("latin-1", errors="ignore")
        elif not added[token_id].special:  # written as it is, not in GPT-2's alphabet
            table[token_id] = token.encode()
    return table


def _end_id(library: tokenizers.Tokenizer) -> int:
    for name in _END_NAMES:
        token_id = library.token_to_id(name)
        if token_id is not None:
            return int(token_id)
    raise CheckpointError(f"the tokenizer has no end-of-text token, one of {', '.join(_END_NAMES)} is needed")
