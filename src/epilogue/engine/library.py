"""The books that were read, as states in a folder: found by how they begin, replaced as they are edited, the least
lately used removed when there are too many.

A folder holds files of the name ID.state.safetensors and nothing else of ours; no other file in it is touched. A
state's time of last use is its file's time of change. Several processes may use a folder at once: files appear whole,
and whoever has one open keeps it when another removes it.
"""

import os
import shutil
from collections.abc import Generator
from collections.abc import Sequence as Several
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import platformdirs
import xxhash

from epilogue.checkpoint import clear_leftovers
from epilogue.engine.book_state import (
    CheckedState,
    StateHeader,
    check_state,
    open_in_slices,
    open_state,
    read_header,
    read_outline,
    save_state,
    state_bytes,
)
from epilogue.engine.engine import Engine
from epilogue.engine.prefixes import common_tokens
from epilogue.engine.sequence import Sequence
from epilogue.errors import StateError

_SUFFIX = ".state.safetensors"
# Of the disk's free room and the states themselves, if no limit is given: a 7B model's books take gigabytes each.
_SHARE_OF_DISK = 0.1


@dataclass(frozen=True)
class Kept:
    """One state in the folder."""

    path: Path
    num_bytes: int
    used_at: datetime
    header: StateHeader | None
    """None if the file is not usable."""
    problem: str = ""
    """Why not, in one sentence."""

    @property
    def id(self) -> str:
        """Its name in lists, sixteen hexadecimal digits."""
        return self.path.name.removesuffix(_SUFFIX)


@dataclass(frozen=True)
class Found:
    """A state that a text can go on from; whole, and not put into an engine's pages yet."""

    kept: Kept
    state: CheckedState

    def open(self, engine: Engine) -> Generator[None, None, Sequence]:
        """Put what was read into the engine's pages, some megabytes a step; the engine may move other texts in between.

        Raises:
            StateError: its tensors are not those of this engine; the file has been removed.
            CapacityError: there are not enough free pages; in the first step.
        """
        try:
            return (yield from open_in_slices(self.state, engine))
        except StateError:
            self.kept.path.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Opened:
    """A text whose beginning was read before."""

    sequence: Sequence
    kept: Kept
    common_tokens: int
    """With how many tokens both begin."""

    @property
    def is_mostly_common(self) -> bool:
        """Whether the text is a later form of what was kept, and not another that begins alike."""
        return self.kept.header is not None and 2 * self.common_tokens > self.kept.header.num_tokens


class Library:
    """The states of one folder.

    Args:
        folder: made when a state is first kept; the user's cache folder if None.
        limit_bytes: how much all states may take together; a tenth of what the disk could have free if None.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.folder = folder or platformdirs.user_cache_path("epilogue", appauthor=False) / "states"
        self._limit_bytes = limit_bytes

    def all(self) -> list[Kept]:
        """Every state, the one used last first."""
        found = (_kept(path) for path in self.folder.glob(f"*{_SUFFIX}"))
        return sorted(filter(None, found), key=lambda kept: kept.used_at, reverse=True)

    def limit_bytes(self) -> int:
        """How much all states may take together, now."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        held = sum(kept.num_bytes for kept in self.all())
        return int(_SHARE_OF_DISK * (shutil.disk_usage(_existing(self.folder)).free + held))

    def open(self, engine: Engine, ids: Several[int]) -> Opened | None:
        """The text that begins most like this one, if any was read with the same model, storage and epsilon.

        Raises:
            StateError: it is damaged; the file has been removed, and asking again finds the next best.
            CapacityError: there are not enough free pages.
        """
        found = self.find(engine, ids)
        if found is None:
            return None
        try:
            sequence = open_state(found.state, engine)
        except StateError:
            found.kept.path.unlink(missing_ok=True)
            raise
        return Opened(sequence, found.kept, common_tokens(ids, sequence.ids))

    def find(self, engine: Engine, ids: Several[int], *, least_tokens: int = 1) -> Found | None:
        """The state that ``open`` would open. For any thread: the engine is not touched.

        Args:
            engine: whose model, storage and epsilon it must have.
            ids: the text.
            least_tokens: a state that spares fewer is none.

        Raises:
            StateError: as ``open``.
        """
        usable_tokens, best = self._best(engine, ids)
        if best is None or usable_tokens < least_tokens:
            return None
        try:
            return self.take(engine, best)
        except StateError:
            best.path.unlink(missing_ok=True)
            raise

    def take(self, engine: Engine, kept: Kept) -> Found:
        """One state of those that ``all`` lists. For any thread: the engine is not touched.

        Raises:
            StateError: it is damaged, or not this engine's.
        """
        state = check_state(kept.path, engine)
        # By itself the system would take its last tick, which may be that of another file.
        self.note_use(kept, datetime.now())
        return Found(kept, state)

    def note_use(self, kept: Kept, used_at: datetime) -> None:
        """Write down when a state was last used, by which it is listed and removed; for any thread."""
        with suppress(OSError):  # a folder that may only be read serves as well
            os.utime(kept.path, (used_at.timestamp(), used_at.timestamp()))

    def keep(
        self, engine: Engine, sequence: Sequence, *, title: str = "", model: str = "", replaces: Opened | None = None
    ) -> Kept:
        """Write a state, for ``open`` to find.

        Args:
            engine: the sequence's.
            sequence: what was read of it is kept.
            title: of the book.
            model: a name for people.
            replaces: the state it was opened from. If most of that, and all they have in common, is in this one, it is
                removed.

        Raises:
            StateError: it is larger than the limit, or cannot be written.
        """
        size, path = state_bytes(engine, sequence), self.folder / f"{id_of(engine, sequence)}{_SUFFIX}"
        is_later = (
            replaces is not None
            and replaces.is_mostly_common
            and sequence.table.num_tokens >= replaces.common_tokens  # else it was interrupted
        )
        old = replaces.kept.path if replaces is not None and is_later else path
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"the folder {self.folder} for book states cannot be made ({error.strerror or error}); name another"
            ) from error
        clear_leftovers(self.folder)
        self._make_room(size, spare={path, old})
        save_state(path, engine, sequence, title=title, model=model, on=date.today().isoformat())
        if old != path:
            old.unlink(missing_ok=True)
        kept = _kept(path)
        if kept is None:
            raise StateError(
                f"the book state {path} was removed by another program while it was written; keep it again"
            )
        return kept

    def remove(self, start_of_id: str) -> Kept:
        """Remove the one state whose id begins so.

        Raises:
            StateError: there is none, or several.
        """
        found = [kept for kept in self.all() if kept.id.startswith(start_of_id)]
        if len(found) != 1 or not start_of_id:
            raise StateError(
                f"{len(found)} book states in {self.folder} have an id that begins with {start_of_id!r}; "
                "`epilogue states list` shows all of them"
            )
        found[0].path.unlink(missing_ok=True)
        return found[0]

    def clear(self) -> list[Kept]:
        """Remove all states, and what interrupted writers left."""
        every = self.all()
        for kept in every:
            kept.path.unlink(missing_ok=True)
        clear_leftovers(self.folder)
        return every

    def clear_unusable(self) -> list[Kept]:
        """Remove what is damaged or of another version."""
        useless = [kept for kept in self.all() if kept.header is None]
        for kept in useless:
            kept.path.unlink(missing_ok=True)
        return useless

    def _best(self, engine: Engine, ids: Several[int]) -> tuple[int, Kept | None]:
        """Of which most is left to go on from, and how much; of equals the one used last."""
        ours = (engine.fingerprint, engine.pages.pool.storage, engine.epsilon)
        fitting = [
            (_usable_tokens(kept.path, engine, ids), kept)
            for kept in self.all()
            if kept.header and (kept.header.fingerprint, kept.header.storage, kept.header.epsilon) == ours
        ]
        return max(fitting, key=lambda found: found[0], default=(0, None))

    def _make_room(self, num_bytes: int, *, spare: set[Path]) -> None:
        """Remove what was not used for longest, until a new state keeps the limit."""
        limit = self.limit_bytes()
        if num_bytes > limit:
            raise StateError(
                f"the book state takes {num_bytes / 2**30:,.2f} GiB and all states together may take"
                f" {limit / 2**30:,.2f}; raise the limit or use another storage"
            )
        others = [kept for kept in self.all() if kept.path not in spare]
        total = sum(kept.num_bytes for kept in others) + num_bytes
        while total > limit:
            oldest = others.pop()
            oldest.path.unlink(missing_ok=True)
            total -= oldest.num_bytes


def id_of(engine: Engine, sequence: Sequence) -> str:
    """What a state of what was read of a text is called; of its own for every text, model, storage and epsilon."""
    digest = xxhash.xxh3_64(f"{engine.fingerprint} {engine.pages.pool.storage} {engine.epsilon!r} ".encode())
    digest.update(",".join(map(str, sequence.ids[: sequence.table.num_tokens])).encode())
    return digest.hexdigest()


def _kept(path: Path) -> Kept | None:
    """None if it has gone meanwhile."""
    try:
        stat = path.stat()
        header, problem = read_header(path), ""
    except OSError:
        return None
    except StateError as error:
        header, problem = None, str(error)
    return Kept(path, stat.st_size, datetime.fromtimestamp(stat.st_mtime), header, problem)


def _usable_tokens(path: Path, engine: Engine, ids: Several[int]) -> int:
    """More than there are for a file that cannot be read: opening it will say why."""
    try:
        known, table = read_outline(path)
        common = common_tokens(ids, known)
        return engine.latest_cut(table, common) if common else 0
    except (StateError, RuntimeError, IndexError):
        return len(ids) + 1


def _existing(folder: Path) -> Path:
    return next((place for place in (folder, *folder.parents) if place.exists()), Path.cwd())
