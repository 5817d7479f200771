"""The packages of the extra `[data]`: imported where they are used, and asked for in one sentence where they lack."""

import importlib
from typing import Any

from epilogue.errors import BookError


def require(module: str, *, purpose: str, extra: str = "data") -> Any:
    """Import a package that only some need.

    Raises:
        BookError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        wanted = f"pip install 'epilogue[{extra}]'" if extra else f"pip install {package}"
        raise BookError(f"{purpose} needs {package}, which cannot be imported ({error}); {wanted}") from error
