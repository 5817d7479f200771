"""Books become shards at their place whole or not at all."""

from pathlib import Path

import pytest

from epilogue.data import Shards, prepare_shards
from epilogue.data.publish import begin_folder, publish_folder, remove_folder
from epilogue.errors import BookError, ShardError
from epilogue.text import Tokenizer


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("harbour", "lighthouse"):
        (folder / f"{name}.txt").write_text(f"The {name} lay in the rain. " * 20)
    return folder


def test_books_become_shards_with_a_vocabulary_of_their_own(tmp_path: Path, books: Path) -> None:
    seen: list[tuple[str, int]] = []
    shards = prepare_shards([books], tmp_path / "s", vocab_size=270, on_book=lambda *book: seen.append(book))
    assert [d.id for d in shards.documents] == ["harbour", "lighthouse"]
    assert [n for _, n in seen] == [d.num_tokens - 1 for d in shards.documents]
    for document in shards.documents:
        *ids, end = shards.tokens(document).tolist()
        text = shards.tokenizer.decode(ids)
        assert text.startswith(f"The {document.id} lay in the rain. The")
        assert end == shards.tokenizer.eos_id
        assert len(text.encode()) == document.num_bytes
    assert shards.tokenizer.vocab_size <= 270


def test_a_given_tokenizer_is_used(tmp_path: Path, books: Path, tokenizer: Tokenizer) -> None:
    shards = prepare_shards([books], tmp_path / "s", tokenizer=tokenizer)
    assert shards.tokenizer.fingerprint == tokenizer.fingerprint


def test_a_place_that_is_taken_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="exists already"):
        prepare_shards([tmp_path / "no such book"], tmp_path)


def test_no_book_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "b.jsonl").write_text("\n")
    for sources in ([tmp_path / "b.jsonl"], []):
        with pytest.raises(BookError, match="there is no book in"):
            prepare_shards(sources, tmp_path / "s", tokenizer=tokenizer)
        assert not (tmp_path / "s").exists()
    with pytest.raises(ShardError):
        Shards(tmp_path / "s")


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    partial = begin_folder(tmp_path / "step.1")
    (partial / "old").touch()
    partial = begin_folder(tmp_path / "step.1")
    assert not list(partial.iterdir())
    (partial / "deep").mkdir()
    (partial / "deep" / "new").write_text("new")
    assert publish_folder(partial) == tmp_path / "step.1"
    assert (tmp_path / "step.1" / "deep" / "new").read_text() == "new"
    remove_folder(tmp_path / "step.1")
    assert not list(tmp_path.iterdir())
