"""A whole selection: the same bytes for any number of workers, a reason for every drop, and what is there is kept."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from corpus.conftest import Write
from epilogue.corpus import Cluster, Selection, Wanted, select_books
from epilogue.corpus.executors import make_executors
from epilogue.corpus.json_lines import read_json_lines
from epilogue.corpus.selecting import _stages
from epilogue.corpus.sources import list_units, share_out
from epilogue.errors import BookError

DUTCH = "De oude man liep langzaam langs het water en zei niets tegen de vrouw die bij de deur stond te wachten. "
PLAY = "\n\n".join(f"{who}. I have nothing to say of that." for _ in range(150) for who in ("ALGERNON", "LANE"))


@pytest.fixture
def sources(tmp_path: Path, novel: Write, essay: Write) -> Path:
    """A folder with books of every kind in files of every kind."""
    folder = tmp_path / "found"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("one/first.txt", novel(1))
        archive.writestr("one/.hidden.txt", novel(8))
    with tarfile.open(folder / "b.tar.gz", "w:gz") as packed:
        for name, text in (("second.txt", novel(2)), ("picture.jpg", "no book")):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    lines = [
        {"id": "third", "text": novel(3), "year": 1901},
        {"id": "copy", "text": novel(1).replace("“", '"').replace("”", '"')},
        {"id": "collected", "text": f"{novel(4, 6000)}\n\n{novel(5, 6000)}"},
        {"id": "part", "text": novel(5, 6000)},
        {"id": "edition", "text": novel(4, 6000).replace("Martha", "Margaret", 3) + "\n\n" + novel(5, 5000)},
        {"id": "argument", "text": essay(1)},
        {"id": "dutch", "text": DUTCH * 120},
        {"id": "play", "text": PLAY},
        {"id": "short", "text": novel(6, 300)},
        {"id": "again", "text": novel(7, 700) + "\n\n" + "\n\n".join([novel(9, 700)] * 4)},
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    (folder / "d.txt").write_bytes(b"\x00\x01\x02" * 100)
    (folder / "held.txt").write_text(novel(10))
    return folder


def select(folder: Path, out: Path, **settings: Any) -> Path:
    workers = settings.pop("workers", 1)
    books = select_books(Selection(sources=[str(folder)], **settings), out, Cluster(workers=workers))
    assert books is not None
    return books


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_every_book_is_kept_or_has_its_reason(sources: Path, tmp_path: Path, novel: Write) -> None:
    (tmp_path / "kept-out.txt").write_text(novel(10))
    books = select(sources, tmp_path / "out", held_out=[str(tmp_path / "kept-out.txt")])
    kept = [fields for file in sorted(books.iterdir()) for _, fields in read_json_lines(file)]
    assert [fields["id"] for fields in kept] == ["a.zip/one/first", "b.tar.gz/second", "third", "collected"]
    assert kept[0]["text"] == novel(1)
    report = report_of(tmp_path / "out")
    assert {line["id"]: line["reason"] for line in report["dropped"]} == {
        "copy": "duplicate",
        "part": "contained",
        "edition": "edition",
        "argument": "not fiction (classifier)",
        "dutch": "language",
        "play": "play",
        "short": "too short",
        "again": "quality",
        "d": "unreadable",
        "held": "held out",
    }
    assert all(line["why"] for line in report["dropped"])
    assert (report["books"], report["kept"]) == (14, 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "books",
        "plan.json",
        "report.html",
        "report.json",
    ]


def test_books_are_prepared_without_the_extra_where_nothing_is_filtered(tmp_path: Path, novel: Write) -> None:
    (tmp_path / "book.txt").write_text(novel(1))
    code = (
        "import sys; sys.modules |= dict.fromkeys(['datatrove', 'ftfy', 'py3langid', 'pyarrow', 'loguru']);"
        "from epilogue.corpus.reading import read_unit; from epilogue.data.sources import iterate_documents;"
        "print(len(list(iterate_documents(sys.argv[1:]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "book.txt")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "1\n"


def test_two_workers_make_the_same_bytes_as_one(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epilogue.corpus.selecting.TASK_BYTES", 30_000)
    one, two = tmp_path / "one", tmp_path / "two"
    select(sources, one)
    select(sources, two, workers=2)
    assert everything(one) == everything(two)
    assert len(list((one / "books").iterdir())) == 2


def test_an_interrupted_selection_goes_on(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epilogue.corpus.selecting.TASK_BYTES", 30_000)
    select(sources, tmp_path / "whole")

    def fail(*arguments: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("epilogue.corpus.steps.compare_books", fail)
        with pytest.raises(OSError, match="disk is full"):
            select(sources, tmp_path / "out")
    assert not (tmp_path / "out" / "books").exists()
    with monkeypatch.context() as patch:
        patch.setattr("epilogue.corpus.steps.read_unit", fail)  # all has been read and judged
        select(sources, tmp_path / "out")
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_another_selection_is_not_overwritten(sources: Path, tmp_path: Path) -> None:
    select(sources, tmp_path / "out")
    before = everything(tmp_path / "out")
    with pytest.raises(BookError, match="other books or by other rules"):
        select(sources, tmp_path / "out", wanted=Wanted(language="fr"))
    with pytest.raises(BookError, match="is no selection"):
        select(sources, sources)
    assert everything(tmp_path / "out") == before


def test_clusters_take_the_same_stages(sources: Path, tmp_path: Path) -> None:
    selection = Selection(sources=[str(sources)])
    tasks = share_out(list_units(selection.sources), task_bytes=1)
    stages = _stages(selection, tasks, tmp_path)
    slurm = make_executors(stages, Cluster(kind="slurm", partition="cpu", workers=3), tmp_path / "logs")
    ray = make_executors(stages, Cluster(kind="ray", workers=3), tmp_path / "logs")
    for executors in (slurm, ray):
        assert [executor.world_size for executor in executors] == [len(tasks), 1, len(tasks), 1]
    assert [executor.depends for executor in slurm] == [None, *slurm[:-1]]
    assert slurm[0].partition == "cpu"


def test_what_lacks_is_asked_for_in_a_sentence(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection(sources=[str(sources)])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BookError, match="there is no sbatch here"):
        select_books(selection, tmp_path / "out", Cluster(kind="slurm", partition="cpu"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BookError, match=r"needs ray.*pip install ray"):
        select_books(selection, tmp_path / "out", Cluster(kind="ray"))
    monkeypatch.setitem(sys.modules, "datatrove.executor", None)
    with pytest.raises(BookError, match=r"needs datatrove.*pip install 'epilogue\[data\]'"):
        select_books(selection, tmp_path / "out")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Wanted(genre="poetry"),
        lambda: Wanted(language="EN"),
        lambda: Wanted(least_words=0),
        lambda: Cluster(kind="spark"),
        lambda: Cluster(workers=0),
        lambda: Cluster(kind="slurm"),
    ],
)
def test_impossible_settings(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"want|needs"):
        wrong()
