"""epilogue reads a whole novel and writes what comes next.

The package tells two stories, each in one direction:

    reading   book text -> tokens -> model -> sampled text     text -> model -> engine -> cli
    making    corpus -> shards -> training -> checkpoint       data -> train -> checkpoint

Read it in this order:

    errors       every exception of ours, drawn as a tree
    text         book text <-> tokens: readers of book files, the tokenizer, text as it grows
    data         corpus -> shards -> batches
    kernels      the operations, one folder each: what it means, its slow twin, its fast backends
    model        the architecture: configuration, ALiBi slopes and their reach, the key/value cache, MPT
    checkpoint   weights on disk
    train        shards -> checkpoint
    quant        checkpoint -> quantised checkpoint
    engine       tokens -> tokens: sampling and the loop that writes
    evals        how good the writing is
    hf           the model behind transformers' Auto classes; an extra
    cli          one file a verb

A part imports only from parts above it; ``pyproject.toml`` holds that rule. The names below load on first
use, so ``import epilogue`` costs neither PyTorch nor a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from epilogue.errors import (
    BookError,
    CapacityError,
    CheckpointError,
    EpilogueError,
    RecipeError,
    RequestError,
    ShardError,
    StateError,
    TrainingError,
)

if TYPE_CHECKING:
    from epilogue.checkpoint import load_checkpoint
    from epilogue.engine import Engine, SamplingParams
    from epilogue.model import MPT, MPTConfig
    from epilogue.text import Book, Tokenizer, read_book

__version__ = "0.1.0"

__all__ = [
    "MPT",
    "Book",
    "BookError",
    "CapacityError",
    "CheckpointError",
    "Engine",
    "EpilogueError",
    "MPTConfig",
    "RecipeError",
    "RequestError",
    "SamplingParams",
    "ShardError",
    "StateError",
    "Tokenizer",
    "TrainingError",
    "load_checkpoint",
    "read_book",
]

_HOME_OF = {
    "Book": "epilogue.text",
    "Tokenizer": "epilogue.text",
    "read_book": "epilogue.text",
    "MPT": "epilogue.model",
    "MPTConfig": "epilogue.model",
    "load_checkpoint": "epilogue.checkpoint",
    "Engine": "epilogue.engine",
    "SamplingParams": "epilogue.engine",
}


def __getattr__(name: str) -> Any:
    """Import the part that a public name lives in, when the name is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'epilogue' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """Show the lazy names as well."""
    return sorted({*globals(), *__all__})
