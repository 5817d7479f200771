"""Tables, datasets of the hub and damaged sources; the report's page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from epilogue.corpus.json_lines import JsonLinesWriter, read_json_lines
from epilogue.corpus.reading import read_unit
from epilogue.corpus.report import Report
from epilogue.corpus.report_page import report_page
from epilogue.corpus.sources import list_catalogues, list_units, share_out
from epilogue.errors import BookError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset's folder as it lies on the hub: a card and a table."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# A card")
    rows = pyarrow.table(
        {"text": ["It rained.", None, "It froze."], "title": ["Rain", "", "Frost"], "year": [1890, 0, 0]}
    )
    parquet.write_table(rows, folder / "data" / "train.parquet")
    return folder


def test_a_dataset_of_the_hub(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [SimpleNamespace(rfilename=name, size=9) for name in ("data/train.parquet", "README.md")]
    info = SimpleNamespace(siblings=files, sha="c0ffee")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *a, **k: info)

    def fetch(name: str, file: str, *, repo_type: str, revision: str) -> str:
        assert (name, repo_type, revision) == ("owner/books", "dataset", "c0ffee")
        return str(dataset / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    [unit] = list_units(["hf:owner/books"])
    assert (unit.kind, unit.path) == ("table", "hf:owner/books@c0ffee/data/train.parquet")
    books = list(read_unit(unit))
    assert [(book.title, book.text, book.year) for book in books] == [
        ("Rain", "It rained.", 1890),
        ("Frost", "It froze.", None),
    ]


def test_a_hub_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(BookError, match="the dataset owner/none cannot be listed"):
        list_units(["hf:owner/none"])


def test_a_folder_is_shared_out_in_order(tmp_path: Path) -> None:
    for name in ("c.txt", "a.html", "pg_catalog.csv", "b.xml", ".d.txt", "cover.jpg"):
        (tmp_path / name).write_text("x" * 10)
    units = list_units([tmp_path])
    assert [unit.name for unit in units] == ["a.html", "b.xml", "c.txt"]
    assert [[unit.name for unit in task] for task in share_out(units, task_bytes=15)] == [
        ["a.html", "b.xml"],
        ["c.txt"],
    ]
    assert [path.name for path in list_catalogues([tmp_path])] == ["pg_catalog.csv"]


@pytest.mark.parametrize("name", ["gone.txt", "empty", "bad.zip", "bad.tar.gz"])
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for bad in ("bad.zip", "bad.tar.gz"):
        (tmp_path / bad).write_bytes(b"no archive")
    with pytest.raises(BookError, match=name):
        list_units([tmp_path / name])


def test_json_lines_come_back_and_never_stand_half(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"

    def write(*, fails: bool) -> None:
        with JsonLinesWriter(path) as out:
            out.write({"text": "It rained."})
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(fails=True)
    assert not list(tmp_path.iterdir())
    write(fails=False)
    assert list(read_json_lines(path)) == [(1, {"text": "It rained."})]


def test_the_page_shows_what_was_dropped_and_asks_nobody() -> None:
    report = Report()
    record: dict[str, Any] = {"id": "a", "title": "<b>", "author": "", "source": "a", "year": 1890, "chars": 9}
    measures = {"words": 3000, "fiction_score": -1.0, "language": "en"}
    report.add(record | {"dropped": "", "measures": measures})
    report.add(record | {"dropped": "play", "why": "it is one", "excerpt": "JACK. Yes.", "measures": measures})
    page = report_page(report.summary())
    for shown in ("1 of 2 books kept", "&lt;b&gt;", "it is one", "JACK. Yes.", "<svg", ">1890<"):
        assert shown in page
    for asked in ("http", "<script", "<link", "<b>"):
        assert asked not in page
    assert "0 of 0 books kept" in report_page(Report().summary())
