"""Stories that front ends save with the server, by KoboldCpp's contract: twelve slots, a file each.

What is in a slot is the client's business: a string, usually compressed. No name of a file comes from a request.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from epilogue.checkpoint import clear_leftovers, whole_file

NUM_SLOTS = 12
MOST_CHARACTERS = 10 * 2**20
"""Of a story."""
_log = logging.getLogger("epilogue.server")


@dataclass(frozen=True)
class Save:
    """What a slot holds."""

    title: str
    format: str
    data: str


class Saves:
    """The slots of one folder.

    Args:
        folder: made when something is first saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def titles(self) -> list[str]:
        """Of every slot; empty for an empty one."""
        saves = [self.load(slot) for slot in range(NUM_SLOTS)]
        return [save.title if save else "" for save in saves]

    def load(self, slot: int) -> Save | None:
        """What a slot holds; None if it is empty, or not one of ours.

        Raises:
            IndexError: there is no such slot.
        """
        path = self._path(slot)
        try:
            said = json.loads(path.read_bytes())
            return Save(str(said["title"]), str(said["format"]), str(said["data"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            _log.warning("the save %s cannot be read (%s); its slot counts as empty", path, error)
            return None

    def store(self, slot: int, save: Save | None) -> None:
        """Fill a slot, or empty it. Until the file is whole on the disk the old one stays.

        Raises:
            IndexError: there is no such slot.
            OSError: the disk refuses; the slot is as it was.
        """
        path = self._path(slot)
        if save is None:
            path.unlink(missing_ok=True)
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_leftovers(self.folder)
        with whole_file(path) as file:
            file.write(json.dumps(asdict(save)).encode())

    def _path(self, slot: int) -> Path:
        if not 0 <= slot < NUM_SLOTS:
            raise IndexError(f"there are slots 0 to {NUM_SLOTS - 1}, got {slot}")
        return self.folder / f"slot-{slot:02}.json"
