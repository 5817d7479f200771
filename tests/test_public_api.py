"""The package's front door: what it offers, and that opening it costs nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import epilogue

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers"}


def run_fresh(code: str) -> str:
    """What a new interpreter prints for ``code``."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def heavy_modules_after(code: str) -> set[str]:
    return set(run_fresh(f"{code}\nimport sys\nprint(*sys.modules)").split()) & HEAVY


def test_import_is_light() -> None:
    assert not heavy_modules_after("import epilogue")


def test_help_is_light() -> None:
    code = """
import runpy, sys
sys.argv = ["epilogue", "--help"]
try:
    runpy.run_module("epilogue", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not heavy_modules_after(code)


@pytest.mark.parametrize("name", epilogue.__all__)
def test_public_names_load(name: str) -> None:
    assert getattr(epilogue, name).__name__ == name
    assert name in dir(epilogue)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        epilogue.Nonsense  # noqa: B018


def test_the_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert epilogue.__version__ == project["version"]
