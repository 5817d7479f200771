"""The optional C++ extension: whether it is here, and the way to it.

``pip`` builds it where it finds a compiler (native/CMakeLists.txt). Without it every operation runs through PyTorch.
"""

import os
from functools import lru_cache
from importlib import import_module
from typing import Any


@lru_cache(maxsize=1)
def native_module() -> Any | None:
    """The extension, or None where it was not built, does not load, or ``EPILOGUE_NATIVE=0`` turns it off."""
    if os.environ.get("EPILOGUE_NATIVE") == "0":
        return None
    try:
        return import_module("epilogue.kernels._native")
    except ImportError:
        return None


def native_is_available() -> bool:
    """Whether decode on the CPU runs in C++."""
    return native_module() is not None


def native_instructions() -> str | None:
    """The instruction set that it runs here: portable, avx2, avxvnni, avx512, avx512vnni or amx. None without it."""
    module = native_module()
    return None if module is None else str(module.kernels(""))
