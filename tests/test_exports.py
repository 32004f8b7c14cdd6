"""The public names: there, sorted, documented, with torch's signatures; and the error tree as it is drawn."""

from __future__ import annotations

import ast
import inspect
import re
from types import ModuleType
from typing import Any

import pytest

import zrpc
import zrpc.errors as errors_module

PUBLIC = {name: getattr(zrpc, name) for name in zrpc.__all__}


def test_all_is_sorted_and_complete() -> None:
    assert list(zrpc.__all__) == sorted(set(zrpc.__all__))
    assert dir(zrpc) == list(zrpc.__all__)
    source = ast.parse(inspect.getsource(zrpc))
    imported = {alias.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported - {"annotations", "TYPE_CHECKING", "Any"} == set(zrpc.__all__), "what type checkers see"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rpc_snyc'"):
        _ = zrpc.rpc_snyc  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(zrpc._ALSO))
def test_names_that_programs_for_torch_use_are_there(name: str) -> None:
    assert getattr(zrpc, name) is not None
    assert name not in zrpc.__all__


def undocumented(name: str, value: Any) -> list[str]:
    """Names without a docstring of their own: the value's, its public methods', and a module's functions'."""
    if isinstance(value, str):
        return []
    found = [] if (value.__doc__ or "").strip() else [name]
    if isinstance(value, ModuleType):
        inner = {key: item for key, item in vars(value).items() if getattr(item, "__module__", "") == value.__name__}
    elif inspect.isclass(value) and value.__module__.startswith("zrpc."):
        inner = {key: item for key, item in vars(value).items() if callable(item) or isinstance(item, property)}
    else:
        return found
    for key, item in inner.items():
        if not key.startswith("_"):
            found += undocumented(f"{name}.{key}", item)
    return found


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_documented(name: str) -> None:
    assert undocumented(name, PUBLIC[name]) == []


# Names, order and defaults as in torch.distributed.rpc; what zrpc adds comes after.
SIGNATURES = {
    "init_rpc": "name, backend=None, rank=-1, world_size=None, rpc_backend_options=None",
    "shutdown": "graceful=True, timeout=0",
    "rpc_sync": "to, func, args=None, kwargs=None, timeout=-1",
    "rpc_async": "to, func, args=None, kwargs=None, timeout=-1",
    "remote": "to, func, args=None, kwargs=None, timeout=-1",
    "get_worker_info": "worker_name=None",
}


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures_are_torchs(name: str) -> None:
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    positional = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    wanted = SIGNATURES[name].split(", ")
    assert [p.name for p in positional] == [text.partition("=")[0] for text in wanted]
    defaults = {p.name: repr(p.default) for p in positional}
    for text in wanted:
        key, given, default = text.partition("=")
        if given:
            assert defaults[key] == default


def test_worker_info_is_a_name_and_an_id() -> None:
    assert zrpc.WorkerInfo("a", 3) == ("a", 3)
    assert zrpc.WorkerInfo._fields == ("name", "id")


LINE = re.compile(r"^    (?P<lead>[| ]*)(?:\|-- |`-- )?(?P<name>[A-Z]\w+)(?: \(also an? (?P<also>\w+)\))?(?:\s|$)")


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Each class in the drawing, with its bases."""
    bases: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in (errors_module.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(line[4:].partition("-- ")[0]) // 4 + 1 if "-- " in line else 0
        assert depth <= len(path), line
        path[depth:] = [match["name"]]
        parent = path[depth - 1] if depth else "RuntimeError"
        bases[match["name"]] = (parent, match["also"]) if match["also"] else (parent,)
    return bases


def test_the_error_tree_is_as_drawn() -> None:
    actual = {
        name: tuple(base.__name__ for base in value.__bases__)
        for name, value in vars(errors_module).items()
        if inspect.isclass(value) and value.__module__ == errors_module.__name__
    }
    assert drawn_tree() == actual


def test_every_error_is_a_zrpc_error() -> None:
    for name in drawn_tree():
        assert issubclass(getattr(errors_module, name), zrpc.errors.ZrpcError)
