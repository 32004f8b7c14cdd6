"""Sentences for what is wrong with a configuration: `file:line: roles.shard.count: expected ..., found ...`.

One rule: a sentence says what was expected and what is there, in the words of the file, never of the validator.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from zrpc.config.schema import Expect
from zrpc.config.tree import Path, Tree, dotted, show


def describe(tree: Tree, model: type[BaseModel], errors: list[ErrorDetails]) -> list[str]:
    """One line for each thing that the validator found."""
    found: dict[Path, str] = {}
    for error in errors:
        path = _path(tree.value, error["loc"])
        if path not in found:
            found[path] = _sentence(tree, model, path, error)
    return list(found.values())


def _path(value: Any, loc: tuple[int | str, ...]) -> Path:
    """The validator's location without the names of union branches that it puts in."""
    path: Path = ()
    here = value
    for part in loc:
        if isinstance(here, dict) and part == "[key]":
            break
        if isinstance(here, dict) and isinstance(part, str):
            path = (*path, part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path = (*path, part)
            here = here[part]
    return path


def _sentence(tree: Tree, model: type[BaseModel], path: Path, error: ErrorDetails) -> str:
    kind = error["type"]
    place = tree.place_of(path)
    if kind == "extra_forbidden":
        return f"{place}: {dotted(path)}: {_unknown(model, path)}"
    if kind == "missing":
        wanted = expectation(model, path)
        return f"{place}: {dotted(path)}: is missing; expected {wanted}"
    if error["loc"][-1:] == ("[key]",):
        why = str(error.get("ctx", {}).get("error", error["msg"]))
        return f"{place}: {dotted(path)}: expected a name as key: {why}"
    return f"{place}: {dotted(path) or 'the file'}: expected {expectation(model, path)}, found {show(error['input'])}"


def _unknown(model: type[BaseModel], path: Path) -> str:
    owner = _unwrap(_annotation(model, path[:-1]))
    keys = keys_of(owner) if isinstance(owner, type) and issubclass(owner, BaseModel) else []
    near = difflib.get_close_matches(str(path[-1]), keys, n=1, cutoff=0.5)
    if near:
        return f"there is no such key; did you mean {near[0]!r}?"
    return f"there is no such key; the keys here are {', '.join(keys)}"


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a model as they are written in a file."""
    return [info.alias or name for name, info in model.model_fields.items()]


def expectation(model: type[BaseModel], path: Path) -> str:
    """What the schema expects at `path`, in words."""
    annotation = _annotation(model, path)
    for candidate in _layers(annotation):
        for extra in getattr(candidate, "__metadata__", ()):
            if isinstance(extra, Expect):
                return extra.words
    plain = _unwrap(annotation)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return f"a map with keys of {', '.join(keys_of(plain))}"
    return {str: "text", bool: "on or off", int: "an integer", float: "a number"}.get(plain, "another value")


def _annotation(model: type[BaseModel], path: Path) -> Any:
    """The type that the schema gives the value at `path`, as it was annotated."""
    here: Any = model
    for part in path:
        plain = _unwrap(here)
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            here = _field(plain, str(part))
        else:
            arguments = get_args(plain)
            here = arguments[-1] if arguments else Any
    return here


def _field(model: type[BaseModel], key: str) -> Any:
    for name, info in model.model_fields.items():
        if key in (name, info.alias):
            metadata = [extra for extra in info.metadata if isinstance(extra, Expect)]
            return _Annotated(info.annotation, metadata)
    return Any


class _Annotated:
    """A field's type with its metadata, which pydantic keeps apart."""

    def __init__(self, origin: Any, metadata: list[Expect]) -> None:
        self.__origin__ = origin
        self.__metadata__ = metadata


def _layers(annotation: Any) -> list[Any]:
    """An annotation and what it wraps: its parts if it is optional."""
    layers = [annotation]
    while layers[-1] is not None:
        last = layers[-1]
        if getattr(last, "__metadata__", None) is not None:
            layers.append(last.__origin__)
        elif get_origin(last) in (Union, types.UnionType):
            layers.append(next((part for part in get_args(last) if part is not type(None)), None))
        else:
            break
    return layers


def _unwrap(annotation: Any) -> Any:
    return _layers(annotation)[-1]


def check_names(tree: Tree, names: Mapping[str, list[str]]) -> list[str]:
    """Problems with the workers' names: `names` is those of each role, and of the job under the key ''."""
    problems = []
    holders: dict[str, str] = {}
    for role, made in names.items():
        path: Path = ("roles", role, "name") if role else ("job", "name")
        for name in made:
            if name in holders:
                other = "the job" if not holders[name] else f"role {holders[name]!r}"
                again = "put {index} in the template" if holders[name] == role else f"{other} has it too"
                problems.append(f"{tree.place_of(path)}: {dotted(path)}: two workers would be named {name!r}: {again}")
                break
            holders[name] = role
    return problems
