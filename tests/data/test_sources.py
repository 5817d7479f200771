"""Books from JSON lines, packed or plain, from book files and from folders; what is damaged is named."""

import json
from pathlib import Path

import pytest
import zstandard

from epilogue.data import Document, iterate_documents
from epilogue.errors import BookError


def lines(*entries: object) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ONE, TWO = {"text": "The sea.", "id": "a1", "title": "Sea", "author": "A. Sailor"}, {"text": "Ein Fluß."}


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "books.jsonl").write_bytes(lines(ONE) + b"\n" + lines(TWO).rstrip())
    assert list(iterate_documents([tmp_path / "books.jsonl"])) == [
        Document(id="a1", title="Sea", author="A. Sailor", text="The sea."),
        Document(id="books.jsonl:3", title="", author="", text="Ein Fluß."),
    ]


def test_packed_json_lines_of_several_frames(tmp_path: Path) -> None:
    whole = lines(*({"text": f"Book {i}. " + "x" * 5000} for i in range(50)))
    middle = len(whole) // 2
    (tmp_path / "b.jsonl.zst").write_bytes(pack(whole[:middle]) + pack(whole[middle:]))
    texts = [document.text[:8].strip() for document in iterate_documents([str(tmp_path / "b.jsonl.zst")])]
    assert texts == [f"Book {i}.".strip()[:8] for i in range(50)]


def test_lines_longer_than_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epilogue.corpus.json_lines._READ_BYTES", 3)
    (tmp_path / "b.jsonl").write_bytes(lines(ONE, TWO))
    (tmp_path / "b.jsonl.zst").write_bytes(pack(lines(ONE, TWO)))
    plain, packed = (list(iterate_documents([tmp_path / name])) for name in ("b.jsonl", "b.jsonl.zst"))
    assert [d.text for d in plain] == [d.text for d in packed] == ["The sea.", "Ein Fluß."]


@pytest.mark.parametrize("kept", [0, 10, -3])
def test_a_packed_file_that_was_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "b.jsonl.zst"
    path.write_bytes(pack(lines(ONE, TWO))[:kept])
    with pytest.raises(BookError, match=r"b\.jsonl\.zst is cut off"):
        list(iterate_documents([path]))


def test_a_packed_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl.zst"
    path.write_bytes(lines(ONE))
    with pytest.raises(BookError, match=r"b\.jsonl\.zst is damaged .*fetch it again"):
        list(iterate_documents([path]))


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'"text"', b"7", b"{}", b'{"text": ""}', b'{"text": " \\n"}', b'{"text": 3}', b'{"text": null}',
     b'{"text": "\xff"}', b'{"text": "\\ud800"}'],
)  # fmt: skip
def test_a_line_that_is_no_book_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(ONE) + line)
    documents = iterate_documents([tmp_path / "b.jsonl"])
    next(documents)
    with pytest.raises(
        BookError, match=r'line 2 of .*b\.jsonl is no JSON object with a book as its "text" \(.+\); mend'
    ):
        next(documents)


def test_book_files(tmp_path: Path) -> None:
    (tmp_path / "sea.txt").write_text("The Sea\n\nby Ann Sailor\n\nIt was blue.\n")
    [document] = iterate_documents([tmp_path / "sea.txt"])
    assert (document.id, document.title, document.author) == ("sea", "The Sea", "Ann Sailor")
    assert document.text.endswith("It was blue.")


def test_a_folder_is_read_by_name_with_what_lies_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "c.TXT").write_text("Third book.")
    (tmp_path / "b" / "x.md").write_text("Second book.")
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "First book."}))
    for hidden in ("._c.txt", ".cache/d.txt", "cover.jpg", "notes"):
        (tmp_path / hidden).write_text("No book.")
    assert [d.text for d in iterate_documents([tmp_path])] == ["First book.", "Second book.", "Third book."]


def test_sources_keep_their_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert [d.text for d in iterate_documents([tmp_path / "b.txt", tmp_path / "a.txt"])] == ["b", "a"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BookError, match=r"there is no .*gone\.jsonl; give"):
        list(iterate_documents([tmp_path / "gone.jsonl"]))
    with pytest.raises(BookError, match=r"holds no \.jsonl"):
        list(iterate_documents([tmp_path]))
