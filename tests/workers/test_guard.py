from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from zrpc.launch.processes import guard_path


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_the_guard_needs_nothing_but_python() -> None:
    assert imports_of(Path(guard_path())) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["serve", "script", "job"])
def test_workers_need_nothing_of_the_launchers(name: str) -> None:
    """Follow what a worker imports within zrpc: no schema, no command line, no tables."""
    root = Path(guard_path()).parent
    package = Path(sys.modules["zrpc"].__path__[0])
    todo, seen = [root / f"{name}.py"], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert not imports_of(path) & {"pydantic", "click", "rich", "sklearn", "yaml"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zrpc"):
                base = package.joinpath(*(node.module or "").split(".")[1:])
                names = [base / f"{alias.name}.py" for alias in node.names]
                todo += [p for p in (base.with_suffix(".py"), base / "__init__.py", *names) if p.exists()]
