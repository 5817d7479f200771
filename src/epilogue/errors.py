"""Every exception of ours.

    EpilogueError
    ├── BookError         text that cannot be read as a book
    ├── ShardError        a shard file damaged, truncated or of another version
    ├── RecipeError       a training recipe with an unknown or impossible setting
    ├── TrainingError     a run that cannot go on: its loss is no longer a number
    ├── CheckpointError   a tensor missing, unknown or misshapen; a setting this program does not run
    ├── StateError        a saved book state damaged, of another version or model, or not to be written
    ├── CapacityError     more tokens than memory holds
    └── RequestError      a request's field out of range

A message is one sentence: what is wrong, what came, what was wanted, what to do. ``ValueError`` is for a wrong call
(a programmer's mistake), these are for the world; the command line prints the sentence and exits with 2.
"""


class EpilogueError(Exception):
    """Something in the world is not as wanted; the message says what and what to do."""


class BookError(EpilogueError):
    """A text cannot be read as a book."""


class ShardError(EpilogueError):
    """A token shard is damaged, truncated or of another version."""


class RecipeError(EpilogueError):
    """A training recipe has an unknown key or an impossible value."""


class TrainingError(EpilogueError):
    """A training run cannot go on."""


class CheckpointError(EpilogueError):
    """A checkpoint lacks a tensor, has an unknown or misshapen one, or asks for what is not run here."""


class StateError(EpilogueError):
    """A saved book state is damaged, of another version or model, or cannot be written."""


class CapacityError(EpilogueError):
    """More tokens are asked for than memory holds."""


class RequestError(EpilogueError):
    """A field of a request is out of range."""
