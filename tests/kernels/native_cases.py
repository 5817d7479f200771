"""Marks for what needs the C++ extension, and the instruction sets it may run here."""

from typing import Any

import pytest

from epilogue.kernels.extension import native_is_available, native_module

needs_extension = pytest.mark.skipif(not native_is_available(), reason="the extension was not built: no compiler")


def _runs(name: str) -> bool:
    module: Any = native_module()
    try:
        module.kernels(name)
    except ValueError:
        return False
    return True


each_instruction_set = pytest.mark.parametrize(
    "instructions",
    [
        name
        for name in ("portable", "avx2", "avxvnni", "avx512", "avx512vnni", "amx")
        if native_is_available() and _runs(name)
    ],
)
