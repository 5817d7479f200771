"""Writing a folder of shards, such that a run which was killed is gone on with and ends with the same bytes.

Until all is done there is ``folder.partial`` only. Its documents.jsonl is the journal: a book's tokens are written,
then its line. What a killed run left is believed as far as every line is whole and every book's tokens have the
checksum in it; ``job.json`` says what run it was.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from epilogue.data.manifest import (
    DOCUMENTS,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardDocument,
    ShardFile,
    parse_document,
    token_file_name,
)
from epilogue.data.publish import begin_folder, partial_of, publish_folder
from epilogue.data.shards import Tokens, file_sha256
from epilogue.errors import ShardError
from epilogue.text import Tokenizer

_JOB = "job.json"


def require_absent(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ShardError: ``folder`` exists.
    """
    if folder.exists():
        raise ShardError(f"{folder} exists already; remove it or choose another place")


def id_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The narrowest that holds every id, little-endian."""
    return np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")


class ShardWriter:
    """Writes a folder of shards beside its final place and moves it there when ``finish`` is called.

    Offer every book to ``keeps`` before it is encoded, in the order of the whole run: those that an interrupted run
    with the same tokenizer, pipeline and file size has written already are taken as they are. The first book that is
    another ends that, and what the older run wrote from there on is thrown away.

    Args:
        folder: the final place.
        tokenizer: what makes the ids; saved with them.
        pipeline: name and version of what makes the documents.
        max_file_tokens: a file is ended before it exceeds this; a longer book gets a file of its own.

    Raises:
        ShardError: ``folder`` exists.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, *, pipeline: str = "documents", max_file_tokens: int = 1 << 26
    ) -> None:
        require_absent(folder)
        self.folder, self.tokenizer, self.max_file_tokens = folder, tokenizer, max_file_tokens
        self.dtype, self.pipeline = id_dtype(tokenizer), pipeline
        self._partial = partial_of(folder)
        self._documents: list[ShardDocument] = []
        job = {
            "tokenizer": tokenizer.fingerprint,
            "pipeline": pipeline,
            "dtype": self.dtype.name,
            "max_file_tokens": max_file_tokens,
        }
        self._found = _whole_documents(self._partial, self.dtype) if _read_job(self._partial) == job else None
        if self._found is None:
            begin_folder(folder)
            tokenizer.save(self._partial / TOKENIZER)
            (self._partial / _JOB).write_text(json.dumps(job))
            (self._partial / DOCUMENTS).touch()

    def keeps(self, *, id: str, title: str, text: bytes) -> ShardDocument | None:
        """This book, given in UTF-8, as an interrupted run has written it at this place; it needs no ``add`` then."""
        if self._found is None:
            return None
        place = len(self._documents)
        there = self._found[place] if place < len(self._found) else None
        came = (id, title, len(text), xxhash.xxh3_64_hexdigest(text))
        if there and (there.id, there.title, there.num_bytes, there.text_xxh3) == came:
            self._documents.append(there)
            return there
        self._cut()
        return None

    def add(self, ids: Sequence[int] | Tokens, *, id: str, title: str, text: bytes) -> None:
        """Append one book, whose text is given in UTF-8; the end-of-text id is added here."""
        if self._found is not None:
            self._cut()
        tokens = np.empty(len(ids) + 1, self.dtype)
        tokens[:-1], tokens[-1] = ids, self.tokenizer.eos_id
        file, start = self._end()
        if start and start + len(tokens) > self.max_file_tokens:
            file, start = file + 1, 0
        content = tokens.tobytes()
        document = ShardDocument(
            id=id,
            title=title,
            file=file,
            start=start,
            num_tokens=len(tokens),
            num_bytes=len(text),
            text_xxh3=xxhash.xxh3_64_hexdigest(text),
            tokens_xxh3=xxhash.xxh3_64_hexdigest(content),
        )
        for name, data in ((token_file_name(file), content), (DOCUMENTS, document.line().encode())):
            with (self._partial / name).open("ab") as out:
                out.write(data)
        self._documents.append(document)

    def finish(self) -> None:
        """Write the manifest, and put the folder in its place once all of it is on the disk."""
        if self._found is not None:
            self._cut()
        num_files = self._documents[-1].file + 1 if self._documents else 0
        names = [*map(token_file_name, range(num_files)), DOCUMENTS, TOKENIZER]
        for path in self._partial.iterdir():
            if path.name not in names:
                path.unlink()
        manifest = Manifest(
            dtype=self.dtype.name,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            pipeline=self.pipeline,
            num_documents=len(self._documents),
            files=[_described(self._partial / name) for name in names],
        )
        manifest.write(self._partial / MANIFEST)
        publish_folder(self._partial)

    def _end(self) -> tuple[int, int]:
        """The file that the last book is in, and the tokens up to its end."""
        if not self._documents:
            return 0, 0
        last = self._documents[-1]
        return last.file, last.start + last.num_tokens

    def _cut(self) -> None:
        """Throw away what stands in the files behind the books kept."""
        self._found = None
        last_file, num_tokens = self._end()
        for path in self._partial.glob("tokens-*.bin"):
            if path.name > token_file_name(last_file):
                path.unlink()
        _truncate(self._partial / token_file_name(last_file), num_tokens * self.dtype.itemsize)
        _truncate(self._partial / DOCUMENTS, sum(len(document.line().encode()) for document in self._documents))


def _read_job(partial: Path) -> Any:
    try:
        return json.loads((partial / _JOB).read_text())
    except (OSError, ValueError):
        return None


def _whole_documents(partial: Path, dtype: np.dtype[Any]) -> list[ShardDocument]:
    """The books of an interrupted run, up to the first that is not as its line says."""
    whole: list[ShardDocument] = []
    lines = (partial / DOCUMENTS).read_text(encoding="utf-8", errors="replace").split("\n") if partial.exists() else []
    for line in lines[:-1]:
        try:
            document = parse_document(line)
            with (partial / token_file_name(document.file)).open("rb") as file:
                file.seek(document.start * dtype.itemsize)
                content = file.read(document.num_tokens * dtype.itemsize)
        except (OSError, ValueError, TypeError):
            break
        if xxhash.xxh3_64_hexdigest(content) != document.tokens_xxh3:
            break
        whole.append(document)
    return whole


def _truncate(path: Path, num_bytes: int) -> None:
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(num_bytes)


def _described(path: Path) -> ShardFile:
    return ShardFile(name=path.name, num_bytes=path.stat().st_size, sha256=file_sha256(path))
