"""Reads what modules import, without running them, and says which rules that breaks.

One rule: everything here works on source text, so that a test can plant a violation in a string.

Imports under `if TYPE_CHECKING` count where a rule is about knowing: a lower layer that names a type of a higher one
depends on it, executed or not. They do not count where a rule is about running: they cannot fail at import time, so
they close no cycle, and they load nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Rows = Sequence[Collection[str]]
"""Layers, lowest first. Each row holds modules and packages that may not import one another."""


@dataclass(frozen=True)
class Import:
    """One thing that a module imports: `zrpc.ids.WorkerInfo`, or `zrpc.ids` where a module is meant."""

    name: str
    line: int
    is_nested: bool = False
    is_for_types: bool = False


@dataclass(frozen=True)
class Module:
    """A module's imports, and every dotted name in its code."""

    name: str
    imports: tuple[Import, ...]
    names: tuple[tuple[str, int], ...]


# ------------------------------------------------------------------------------------------- reading


def parse_module(name: str, source: str, is_package: bool = False) -> Module:
    """Read one module. Relative imports are made absolute."""
    tree = ast.parse(source)
    package = name if is_package else name.rpartition(".")[0]
    names = [
        (dotted, node.lineno) for node in ast.walk(tree) if (dotted := _dotted(node)) and isinstance(node, ast.expr)
    ]
    return Module(name, tuple(_find_imports(tree.body, package)), tuple(names))


def read_tree(root: Path, packages: Mapping[str, str]) -> dict[str, Module]:
    """All modules below some folders; `packages` says which package each folder is installed as."""
    modules = {}
    for folder, package in packages.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = [package, *path.relative_to(root / folder).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = parse_module(name, path.read_text(), is_package)
    return modules


def _find_imports(
    body: Iterable[ast.AST], package: str, nested: bool = False, typing: bool = False
) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, nested, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield from (Import(f"{base}.{alias.name}", node.lineno, nested, typing) for alias in node.names)
        elif isinstance(node, ast.If) and _dotted(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _find_imports(node.body, package, nested, True)
            yield from _find_imports(node.orelse, package, nested, typing)
        else:
            if isinstance(node, ast.Call) and (name := _imported_by_call(node)):
                yield Import(name, node.lineno, nested, typing)
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _find_imports(ast.iter_child_nodes(node), package, nested or is_function, typing)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _imported_by_call(node: ast.Call) -> str | None:
    """`importlib.import_module("a.b")` and `__import__("a.b")` are imports too, if they say of what."""
    called = _dotted(node.func) or ""
    if called.rpartition(".")[2] in ("import_module", "__import__") and node.args:
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return first.value
    return None


def _dotted(node: ast.AST) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def is_within(name: str, package: str) -> bool:
    """Whether a dotted name is a package, or in it."""
    return name == package or name.startswith(f"{package}.")


def resolve(name: str, modules: Collection[str]) -> str | None:
    """The module that an imported name is, or is in; None for one that is not ours."""
    while name not in modules:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


# --------------------------------------------------------------------------------------------- rules


def check_layers(modules: Mapping[str, Module], rows: Rows) -> list[str]:
    """Modules in no row, and imports that do not go down."""
    heights = {group: height for height, row in enumerate(rows) for group in row}
    groups = {name: _group_of(name, heights) for name in modules}
    found = [f"{name} is in no layer" for name, group in groups.items() if group is None]
    for module, imported, target in _own_imports(modules):
        mine, other = groups[module.name], groups[target]
        if mine is None or other is None or mine == other or heights[other] < heights[mine]:
            continue
        relation = "its sibling" if heights[other] == heights[mine] else "above it:"
        found.append(f"{module.name}:{imported.line} imports {target}, {relation} {other}")
    return found


def _group_of(name: str, groups: Collection[str]) -> str | None:
    """The longest group that a module is in. `zrpc` is only itself: all are in it."""
    parts = name.split(".")
    if len(parts) == 1:
        return name if name in groups else None
    return next((g for end in range(len(parts), 1, -1) if (g := ".".join(parts[:end])) in groups), None)


def _own_imports(modules: Mapping[str, Module]) -> Iterator[tuple[Module, Import, str]]:
    for module in modules.values():
        for imported in module.imports:
            target = resolve(imported.name, modules)
            if target is not None and target != module.name:
                yield module, imported, target


def check_cycles(modules: Mapping[str, Module]) -> list[str]:
    """The first cycle of imports that run, if there is one."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for module, imported, target in _own_imports(modules):
        if not imported.is_for_types:
            graph[module.name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"a cycle: {' <- '.join(error.args[1])}"]
    return []


def check_nested(modules: Mapping[str, Module]) -> list[str]:
    """Imports inside functions: they hide cycles, and fail late."""
    return [
        f"{module.name}:{imported.line} imports {imported.name} inside a function"
        for module in modules.values()
        for imported in module.imports
        if imported.is_nested
    ]


def check_confined(modules: Mapping[str, Module], homes: Mapping[str, Collection[str]]) -> list[str]:
    """Imports of `what` outside its homes."""
    return [
        f"{module.name}:{imported.line} imports {imported.name}; only {', '.join(sorted(allowed)) or 'nobody'} may"
        for what, allowed in homes.items()
        for module in modules.values()
        for imported in module.imports
        if is_within(imported.name, what) and not any(is_within(module.name, home) for home in allowed)
    ]


def check_barred(modules: Mapping[str, Module], barred: Mapping[str, Collection[str]]) -> list[str]:
    """Imports that a package may not have."""
    return [
        f"{module.name}:{imported.line} imports {imported.name}; {package} may not"
        for package, names in barred.items()
        for module in modules.values()
        if is_within(module.name, package)
        for imported in module.imports
        if any(is_within(imported.name, name) for name in names)
    ]


def check_unnamed(modules: Mapping[str, Module], names: Collection[str]) -> list[str]:
    """Names that no code may import or spell, as `torch.distributed.rpc` after a plain `import torch`."""
    found: dict[str, None] = {}  # ordered; a chain of attributes is spelled once for each of its parts
    for module in modules.values():
        for dotted, line in [*((i.name, i.line) for i in module.imports), *module.names]:
            found |= {f"{module.name}:{line} names {name}": None for name in names if is_within(dotted, name)}
    return list(found)


def check_declared(modules: Mapping[str, Module], declared: Collection[str]) -> list[str]:
    """Imports of what is neither ours, nor Python's, nor a declared dependency."""
    return [
        f"{module.name}:{imported.line} imports {imported.name}, which is not a declared dependency"
        for module in modules.values()
        for imported in module.imports
        if resolve(imported.name, modules) is None
        and (top := imported.name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in declared
    ]


def check_light(modules: Mapping[str, Module], roots: Iterable[str], heavy: Collection[str]) -> list[str]:
    """Heavy packages that come with the modules `roots`, each with the way to it."""
    ways = {name: name for name in roots}
    todo, found = list(ways), []
    while todo:
        module = modules[todo.pop()]
        for imported in module.imports:
            if imported.is_for_types:
                continue
            if imported.name.partition(".")[0] in heavy:
                found.append(f"{ways[module.name]} -> {imported.name}")
            target = resolve(imported.name, modules)
            for loaded in _with_parents(target) if target else ():
                if loaded in modules and loaded not in ways:
                    ways[loaded] = f"{ways[module.name]} -> {loaded}"
                    todo.append(loaded)
    return found


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))
