"""What is installed is what is here, and what a wheel holds is enough."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import zrpc
import zrpc.cli
import zrpc.workers

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"zrpc": "zrpc", "cli": "zrpc.cli", "workers": "zrpc.workers"}
FILES = ("pyproject.toml", "README.md", "LICENSE")


def configured(key: str) -> set[str]:
    """The strings of a list in pyproject.toml (Python 3.10 has no reader of TOML)."""
    block = re.search(rf"^{key} = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    return set(re.findall(r'^  "([^"]+)"', block[1], re.MULTILINE))


def test_packages_are_those_in_the_tree() -> None:
    found = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert configured("packages") == found


def test_every_package_has_its_init() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_all_comes_from_this_checkout() -> None:
    """An environment of another checkout would test that one."""
    assert zrpc.__file__ is not None
    assert zrpc.cli.__file__ is not None
    assert zrpc.workers.__file__ is not None
    assert Path(zrpc.__file__) == ROOT / "zrpc" / "__init__.py"
    assert Path(zrpc.cli.__file__) == ROOT / "cli" / "__init__.py"
    assert Path(zrpc.workers.__file__) == ROOT / "workers" / "__init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that nothing of an earlier build comes in, and without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(built)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = built.glob("torch_zrpc-*-py3-none-any.whl")
    return path


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
        scripts = archive.read(metadata["entry_points.txt"]).decode()
        described = archive.read(metadata["METADATA"]).decode()
    expected = {
        "/".join([*package.split("."), *path.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert names == expected | {"zrpc/py.typed"}
    assert "licenses/LICENSE" in metadata
    assert "zrpc = zrpc.cli.main:main" in scripts
    assert "License-Expression: BSD-3-Clause" in described


SMOKE = """
import sys
sys.path.insert(0, sys.argv[1])
import zrpc, zrpc.cli.main, zrpc.workers.serve, zrpc.cli.launch
for module in (zrpc, zrpc.cli.main, zrpc.workers.serve):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
for name in zrpc.cli.main.COMMANDS:
    __import__(f"zrpc.cli.{name}")
assert sorted(zrpc.cli.main.COMMANDS) == sorted(zrpc.cli.main.main.list_commands(None))
print(zrpc.__version__)
"""


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    done = subprocess.run(
        [sys.executable, "-I", "-c", SMOKE, str(unpacked)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == wheel.name.split("-")[1]
