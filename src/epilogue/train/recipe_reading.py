"""A recipe from a YAML file, read strictly: an unknown key is an error that names the nearest known one."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from epilogue.errors import RecipeError
from epilogue.train.recipe import ModelRecipe, OptimizerRecipe, Recipe
from epilogue.train.recipe_parts import LoraRecipe, MemoryRecipe, ParallelRecipe, StageRecipe

_TABLES = (ModelRecipe, OptimizerRecipe, MemoryRecipe, ParallelRecipe, LoraRecipe, StageRecipe)
_WORDS = {int: "a whole number", bool: "true or false", str: "text", float: "a number"}


def read_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with ``a.b=c`` settings over it (c as in YAML).

    Raises:
        RecipeError: no such file, no YAML, a key that is unknown, missing or given twice, or a value of the wrong kind
            or out of range.
    """
    try:
        raw = _parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"the recipe {path} must be a table of settings, got {raw!r}")
    for setting in overrides:
        _override(raw, setting)
    recipe = _build(Recipe, raw, "")
    assert isinstance(recipe, Recipe)
    return recipe


class _StrictLoader(yaml.SafeLoader):
    """YAML as data, in which a key stands once; the library's own loaders keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value} stands there twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    return yaml.load(text, _StrictLoader)  # a SafeLoader


def _override(raw: dict[str, Any], setting: str) -> None:
    path, equals, value = setting.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not all((*parents, last)):
        raise RecipeError(f"--set takes key=value, got {setting!r}")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"--set {setting}: {name} is no table of settings")
    try:
        raw[last] = _parse(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {setting}: the value is no YAML; put it into quotes if it is text") from error


def _build(kind: type[Any], raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise RecipeError(f"{where.rstrip('.')} is {raw!r}, wanted a table of settings")
    hints = get_type_hints(kind)
    for name in raw:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(hints)}"
            raise RecipeError(f"unknown key {where}{name}; {hint}")
    for f in fields(kind):
        if f.name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise RecipeError(f"the key {where}{f.name} is missing; add it to the recipe")
    return kind(**{name: _convert(hints[name], value, f"{where}{name}") for name, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    or_null = " or null" if type(None) in arguments else ""
    if or_null:
        if value is None:
            return None
        (hint,) = (one for one in arguments if one is not type(None))
        origin, arguments = get_origin(hint), get_args(hint)
    if hint in _TABLES:
        return _build(hint, value, f"{where}.")
    if origin is Literal:
        fits, wanted = value in arguments, " or ".join(map(str, arguments))
    elif origin is tuple and arguments[1:] == (...,):
        if isinstance(value, list):
            return tuple(_convert(arguments[0], one, f"{where}[{place}]") for place, one in enumerate(value))
        fits, wanted = False, "a list"
    elif origin is tuple:
        value = tuple(map(_number, value)) if isinstance(value, list) else value
        fits = isinstance(value, tuple) and [type(x) for x in value] == list(arguments)
        wanted = f"{len(arguments)} numbers in brackets"
    elif hint in _WORDS:
        value = _number(value) if hint is float else value
        fits, wanted = type(value) is hint, _WORDS[hint]
    elif origin is Mapping:
        fits, wanted = isinstance(value, dict) and all(isinstance(key, str) for key in value), "a table of settings"
    else:
        raise AssertionError(f"{hint} is no kind of setting")
    if not fits:
        raise RecipeError(f"{where} is {value!r}, wanted {wanted}{or_null}")
    return value


def _number(value: Any) -> Any:
    """YAML reads 4e-3 as a string; take it for the number it is."""
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return value
