"""The rules of CONTRIBUTING.md that no off-the-shelf tool checks. Imports nothing of ours."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "epilogue"
MODULES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN_NAMES = {"utils", "common", "core", "base", "helpers", "misc"}
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 80
FOLDERS_WITH_AXES = ("model", "kernels", "engine", "train")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def repository_files() -> list[Path]:
    """Every file that is committed or would be: what git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file()]


def axis_letters() -> set[str]:
    """The letters in the first column of the table of docs/notation.md."""
    text = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([A-Z])` \|", text, flags=re.MULTILINE))


def test_the_legend_has_letters() -> None:
    assert set("BTSHDCFVLPWG") <= axis_letters()


@each_module
def test_names_say_something(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    assert not FORBIDDEN_NAMES & set(parts), f"{path.name}: name it after what it holds"


@each_module
def test_files_and_functions_are_small(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES_OF_A_FILE, f"{lines} lines: split it along its concepts"
    for node in ast.walk(parsed(path)):
        if isinstance(node, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in FOLDERS_WITH_AXES],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_axis_suffixes_use_the_legend(path: Path) -> None:
    names = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(parsed(path)) if isinstance(node, ast.arg)}
    for name in sorted(names):
        if match := re.fullmatch(r"_?[a-z][a-z0-9_]*_([A-Z]+)", name):
            unknown = set(match[1]) - axis_letters()
            assert not unknown, f"{name}: add {sorted(unknown)} to docs/notation.md or rename it"


@pytest.mark.parametrize(
    "path",
    # The package's own front door loads its names lazily; tests/test_public_api.py looks after it.
    [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_init_files_only_reexport(path: Path) -> None:
    for node in parsed(path).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        is_all = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        assert is_docstring or is_import or is_all, f"line {node.lineno}: move it into a module of its own"


def public_definitions(node: ast.Module | ast.ClassDef, prefix: str = "") -> list[tuple[str, Definition]]:
    """Public functions, classes and methods, with their dotted names; not what is inside a function."""
    found: list[tuple[str, Definition]] = []
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            found.append((prefix + child.name, child))
            if isinstance(child, ast.ClassDef):
                found += public_definitions(child, f"{prefix}{child.name}.")
    return found


@each_module
def test_public_things_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "the module needs a docstring"
    for name, node in public_definitions(parsed(path)):
        # An overload or an override is documented where the thing itself is.
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        if not decorators & {"overload", "override", "setter"}:
            assert ast.get_docstring(node), f"{name} needs a docstring"


def test_no_path_of_one_machine() -> None:
    machine_path = re.compile(rb"(?<![\w.~$}*])/(work|opt)/\w")
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content and (match := machine_path.search(content)):
            line = content[: match.start()].count(b"\n") + 1
            pytest.fail(f"{path.relative_to(ROOT)}:{line} names a place on one machine")


def test_links_resolve() -> None:
    for path in repository_files():
        if path.suffix != ".md":
            continue
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(<?([^)\s>]+)", text):
            if not re.match(r"[a-z]+:|#", target):
                place = path.parent / target.partition("#")[0]
                assert place.exists(), f"{path.relative_to(ROOT)} links to {target}, which is not there"
