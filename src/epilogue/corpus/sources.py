"""Where books come from: every source is listed as units, each of which one worker reads from end to end.

The list depends on the sources alone, so the books have the same order whoever reads them.
"""

import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from epilogue.corpus.catalogue import is_catalogue
from epilogue.corpus.hub import HUB, list_dataset
from epilogue.corpus.json_lines import JSON_LINES
from epilogue.errors import BookError

BOOKS = (".txt", ".md", ".markdown", ".html", ".htm", ".xhtml", ".epub", ".xml")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TABLES = (".parquet",)
_DATASET = JSON_LINES + TABLES + (".txt",)
_WANTED = "give books (.txt, .md, .html, .epub, TEI .xml), .jsonl, .jsonl.zst, .parquet, archives, or folders of them"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one worker reads in one go.

    Attributes:
        kind: "book", "lines", "table", "tar", or "member" of a .zip.
        path: the file, or the name of one on the Hugging Face hub (``hf:owner/name@revision/file``).
        member: its name in a .zip.
        name: what its books are called in reports: the path below the source.
        num_bytes: size, before unpacking; 0 where it is not known.
    """

    kind: str
    path: str
    name: str
    num_bytes: int
    member: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def list_units(sources: Sequence[str | Path]) -> list[Unit]:
    """Every unit of the sources, in the order given, sorted by name within a folder or archive.

    Raises:
        BookError: a source is missing, of an unknown kind, or holds no book.
    """
    return [unit for source in sources for unit in _units(source)]


def list_catalogues(sources: Sequence[str | Path]) -> list[Path]:
    """Files of Project Gutenberg's catalogue that lie beside the books of a folder."""
    folders = [Path(source) for source in sources if not str(source).startswith(HUB) and Path(source).is_dir()]
    return [path for folder in folders for path in sorted(folder.rglob("*")) if is_catalogue(path)]


def share_out(units: Sequence[Unit], *, task_bytes: int) -> list[list[Unit]]:
    """Units in runs of about ``task_bytes`` each, a task for every run, in order."""
    tasks: list[list[Unit]] = []
    filled = task_bytes
    for unit in units:
        if filled >= task_bytes:
            tasks.append([])
            filled = 0
        tasks[-1].append(unit)
        filled += unit.num_bytes
    return tasks


def _units(source: str | Path) -> Iterator[Unit]:
    if str(source).startswith(HUB):
        for file, size in list_dataset(str(source), _DATASET):
            yield from _unit(Path(file), name=file, path=file, num_bytes=size)
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise BookError(f"there is no {source}; {_WANTED}")
    files = _files(path) if path.is_dir() else [path]
    found = [unit for file in files for unit in _file_units(file, path)]
    if not found:
        raise BookError(f"{source} holds no book; {_WANTED}")
    yield from found


def _file_units(file: Path, source: Path) -> Iterator[Unit]:
    name = file.relative_to(source).as_posix() if file != source else file.name
    return _unit(file, name=name, path=str(file), num_bytes=file.stat().st_size)


def _files(folder: Path) -> list[Path]:
    def is_visible(path: Path) -> bool:
        return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)

    return sorted(path for path in folder.rglob("*") if is_visible(path) and not is_catalogue(path))


def _unit(file: Path, *, name: str, path: str, num_bytes: int) -> Iterator[Unit]:
    lower = file.name.lower()
    if lower.endswith(JSON_LINES):
        yield Unit(kind="lines", path=path, name=name, num_bytes=num_bytes)
    elif lower.endswith(TABLES):
        yield Unit(kind="table", path=path, name=name, num_bytes=num_bytes)
    elif lower.endswith(TARS):
        if not tarfile.is_tarfile(file):
            raise BookError(f"{file} is no tar archive; fetch it again")
        yield Unit(kind="tar", path=path, name=name, num_bytes=num_bytes)
    elif lower.endswith(".zip"):
        yield from _members(file, name)
    elif lower.endswith(BOOKS):
        yield Unit(kind="book", path=path, name=name, num_bytes=num_bytes)


def _members(file: Path, name: str) -> Iterator[Unit]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
    except (zipfile.BadZipFile, OSError) as error:
        raise BookError(f"{file} is no ZIP archive ({error}); fetch it again") from error
    for member in members:
        if is_book_name(member.filename) and not member.is_dir():
            yield Unit(
                kind="member",
                path=str(file),
                name=f"{name}/{member.filename}",
                num_bytes=member.file_size,
                member=member.filename,
            )


def is_book_name(name: str) -> bool:
    """Whether a member of an archive is read: a book by its ending, and not hidden."""
    return name.lower().endswith(BOOKS) and not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
