"""Documents that would drift if nobody held them: the README's tree and the page of the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "epilogue"


def depth(line: str) -> int:
    """Leading blanks."""
    return len(line) - len(line.lstrip())


def tree_in(text: str) -> set[str]:
    """The names directly under ``src/epilogue/`` in the fenced block that draws it, without slashes."""
    blocks = re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    drawing = next(block for block in blocks if "src/epilogue/" in block)
    lines = [re.sub("[│├└─]", " ", line).rstrip("` ") for line in drawing.splitlines()]
    start = next(index for index, line in enumerate(lines) if "src/epilogue/" in line)
    below: list[tuple[int, str]] = []
    for line in filter(None, lines[start + 1 :]):
        if depth(line) <= depth(lines[start]):
            break
        below.append((depth(line), line.split()[0].rstrip("/")))
    return {name for name_depth, name in below if name_depth == min(below)[0]}


PLAIN_TREE = """```
src/epilogue/
    errors.py    a line of prose
    text/        another
        book.py
tests/           not ours
```"""

DRAWN_TREE = """```text
├── src/epilogue/
│   ├── errors.py    a line of prose
│   └── text/        another
│       └── book.py
└── tests/           not ours
```"""


@pytest.mark.parametrize("text", [PLAIN_TREE, DRAWN_TREE])
def test_a_tree_is_read_in_either_drawing(text: str) -> None:
    assert tree_in(text) == {"errors.py", "text"}


def test_the_readme_draws_the_package_as_it_is() -> None:
    drawn = tree_in((ROOT / "README.md").read_text(encoding="utf-8"))
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}
    need_no_line = {"__init__.py", "__main__.py"}
    assert drawn - need_no_line == there - need_no_line


def test_the_command_line_page_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate_cli.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
