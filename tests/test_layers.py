"""Who may import whom. The table below is the architecture: change it when the architecture changes, and only then."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import import_rules as rules
import pytest
from import_rules import Module, parse_module

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"zrpc": "zrpc", "cli": "zrpc.cli", "workers": "zrpc.workers"}

# Lowest first; a module imports only from rows above its own. What stands in one row does not import one another;
# within a package, modules may, but not in a circle.
LAYERS = (
    ("zrpc.errors", "zrpc.version"),
    ("zrpc.ids", "zrpc.clock"),
    ("zrpc.wire",),
    ("zrpc.options",),  # its default for the largest message is the wire's
    ("zrpc.constants",),
    ("zrpc.backend_options",),
    ("zrpc.config", "zrpc.protocol"),
    ("zrpc.telemetry",),
    ("zrpc.serialization", "zrpc.transport", "zrpc.channel"),
    ("zrpc.runtime",),
    ("zrpc.rref_proxy", "zrpc.profiler", "zrpc.server_profile"),
    ("zrpc.broker", "zrpc.rref", "zrpc.functions", "zrpc.autograd"),
    ("zrpc.rendezvous", "zrpc.internal", "zrpc.debug", "zrpc.leaks"),
    ("zrpc.collectives", "zrpc.backend_registry", "zrpc.lifecycle", "zrpc.tracing"),
    ("zrpc.api",),
    ("zrpc.aio", "zrpc.operators"),
    ("zrpc.nn", "zrpc.optim"),
    ("zrpc.checkpoint",),
    ("zrpc",),  # re-exports, and does nothing else
    ("zrpc.launch", "zrpc.testing", "zrpc.compat"),
    ("zrpc.workers", "zrpc.cli"),
)

# Imported nowhere but at home.
HOMES = {
    "time": {"zrpc.clock"},
    "zmq": {"zrpc.transport.curve", "zrpc.transport.monitor", "zrpc.transport.router"},
    "yaml": {"zrpc.config"},
    "pydantic": {"zrpc.config"},
    "pydantic_core": {"zrpc.config"},
    "rich": {"zrpc.launch", "zrpc.cli"},
    "click": {"zrpc.cli"},
    "sklearn": (),
    "asyncio": {"zrpc.aio", "zrpc.runtime.eventloop"},
}

INPUT_AND_OUTPUT = ("socket", "select", "selectors", "ssl", "subprocess", "multiprocessing", "threading", "concurrent")
CHANCE = ("random", "secrets", "uuid")
CLOCKS = ("zrpc.clock.Clock", "zrpc.clock.monotonic", "zrpc.clock.wall", "zrpc.clock.monotonic_ns")

# Not imported there. Protocols are given the time and random numbers; reckoning with deadlines is no clock.
BARRED = {
    "zrpc.wire": ("torch", "numpy", *INPUT_AND_OUTPUT, *CHANCE, "zrpc.clock"),
    "zrpc.protocol": ("torch", "numpy", *INPUT_AND_OUTPUT, *CHANCE, *CLOCKS, "queue", "os", "logging"),
    "zrpc.transport": ("torch",),
    "zrpc.channel": ("torch",),
    "zrpc.serialization": INPUT_AND_OUTPUT[:6],
    "zrpc.options": ("torch",),
}

# The library that this one takes the place of; it is gone from some builds of torch, and must not be needed.
UNNAMED = ("torch.distributed.rpc", "torch._C._distributed_rpc", "torch._C._distributed_autograd")

# The modules of the distributions in pyproject's `dependencies`.
DECLARED = {
    *("torch", "numpy", "zmq", "msgpack", "cloudpickle"),
    *("click", "pydantic", "pydantic_core", "yaml", "rich", "psutil"),
}

# What no worker waits for. Starting a worker takes as long as importing what it needs.
HEAVY = {"pydantic", "pydantic_core", "click", "rich", "yaml", "sklearn", "pandas", "scipy"}

LONGEST_ENTRY_POINT = 60


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return rules.read_tree(ROOT, PACKAGES)


def test_imports_go_down(modules: dict[str, Module]) -> None:
    assert rules.check_layers(modules, LAYERS) == []


def test_every_layer_exists(modules: dict[str, Module]) -> None:
    assert [group for row in LAYERS for group in row if group not in modules] == []


def test_there_is_no_cycle(modules: dict[str, Module]) -> None:
    assert rules.check_cycles(modules) == []


def test_no_function_imports(modules: dict[str, Module]) -> None:
    assert rules.check_nested(modules) == []


def test_libraries_stay_at_home(modules: dict[str, Module]) -> None:
    assert rules.check_confined(modules, HOMES) == []


def test_barred_imports(modules: dict[str, Module]) -> None:
    assert rules.check_barred(modules, BARRED) == []


def test_torch_rpc_is_not_used(modules: dict[str, Module]) -> None:
    assert rules.check_unnamed(modules, UNNAMED) == []


def test_dependencies_are_declared(modules: dict[str, Module]) -> None:
    assert rules.check_declared(modules, DECLARED) == []


def test_workers_import_little(modules: dict[str, Module]) -> None:
    roots = ["zrpc", *(name for name in modules if rules.is_within(name, "zrpc.workers"))]
    assert rules.check_light(modules, roots, HEAVY) == []


def test_entry_points_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for f in ("cli", "workers") for path in (ROOT / f).glob("*.py")}
    assert {path.name: length for path, length in lengths.items() if length > LONGEST_ENTRY_POINT} == {}


# ------------------------------------------------------------------- the rules find what they are for

LOW, HIGH, BESIDE = "zrpc.ids", "zrpc.api", "zrpc.clock"


def planted(name: str, source: str, *, is_package: bool = False) -> dict[str, Module]:
    """Some empty modules, and one with this source."""
    names = ("zrpc", "zrpc.errors", LOW, BESIDE, HIGH, "zrpc.wire", "zrpc.wire.a", "zrpc.wire.b")
    tree = {other: parse_module(other, "", other in ("zrpc", "zrpc.wire")) for other in names}
    return {**tree, name: parse_module(name, source, is_package)}


def in_layers(tree: dict[str, Module]) -> list[str]:
    return rules.check_layers(tree, LAYERS)


def at_home(tree: dict[str, Module]) -> list[str]:
    return rules.check_confined(tree, HOMES)


def without_barred(tree: dict[str, Module]) -> list[str]:
    return rules.check_barred(tree, BARRED)


def without_torch_rpc(tree: dict[str, Module]) -> list[str]:
    return rules.check_unnamed(tree, UNNAMED)


def declared_only(tree: dict[str, Module]) -> list[str]:
    return rules.check_declared(tree, DECLARED)


def light(tree: dict[str, Module]) -> list[str]:
    return rules.check_light(tree, ["zrpc"], HEAVY)


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (in_layers, LOW, "import zrpc.api"),
        (in_layers, LOW, "from zrpc.api import init_rpc"),
        (in_layers, LOW, "from zrpc import api"),
        (in_layers, LOW, "from . import api"),
        (in_layers, LOW, "from .api import init_rpc"),
        (in_layers, LOW, "import zrpc"),
        (in_layers, LOW, "from .clock import wall"),
        (in_layers, "zrpc.wire.a", "from .. import api"),
        (in_layers, "zrpc.wire.a", "from ..api import init_rpc"),
        (in_layers, LOW, "import importlib\nimportlib.import_module('zrpc.api')"),
        (in_layers, LOW, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from zrpc.api import init_rpc"),
        (in_layers, LOW, "try:\n  from zrpc.api import init_rpc\nexcept ImportError:\n  pass"),
        (in_layers, "zrpc.novelty", ""),
        (rules.check_nested, LOW, "def f():\n  import os"),
        (rules.check_nested, LOW, "class A:\n  async def f(self):\n    if self:\n      from os import path"),
        (rules.check_nested, LOW, "f = lambda: __import__('os')"),
        (at_home, LOW, "import time"),
        (at_home, LOW, "from time import monotonic"),
        (at_home, LOW, "import os, time as t"),
        (at_home, "zrpc.transport.base", "import zmq.utils.z85"),
        (at_home, "zrpc.launch.plan", "from pydantic import BaseModel"),
        (without_barred, "zrpc.wire.a", "from torch import Tensor"),
        (without_barred, "zrpc.protocol.calls", "import torch.jit"),
        (without_barred, "zrpc.protocol.calls", "from zrpc.clock import earliest, monotonic"),
        (without_torch_rpc, LOW, "from torch.distributed import rpc"),
        (without_torch_rpc, LOW, "import torch.distributed.rpc.api as a"),
        (without_torch_rpc, LOW, "import torch\nx = torch.distributed.rpc.RRef"),
        (without_torch_rpc, LOW, "import torch\ndef f(x: torch._C._distributed_rpc.PyRRef): ..."),
        (without_torch_rpc, LOW, "import importlib\ndef f():\n  importlib.import_module('torch.distributed.rpc')"),
        (declared_only, LOW, "import requests"),
        (declared_only, LOW, "from cli import main"),
        (light, "zrpc", "from zrpc import wire\nimport click"),
    ],
)
def test_violations_are_found(rule: Callable[[dict[str, Module]], list[str]], name: str, source: str) -> None:
    tree = planted(name, source)
    assert len(rule(tree)) == 1, rule(tree)


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (in_layers, HIGH, "from zrpc.ids import WorkerInfo\nfrom zrpc import errors\nfrom . import clock"),
        (in_layers, "zrpc.wire.a", "from zrpc.wire import b\nfrom .b import B\nfrom ..ids import WorkerInfo"),
        (in_layers, LOW, "from collections import deque"),
        (rules.check_nested, LOW, "import os\nif os.name:\n  import sys\nclass A:\n  import re"),
        (at_home, "zrpc.clock", "import time"),
        (at_home, LOW, "import timeit\nfrom datetime import time"),
        (at_home, "zrpc.transport.router", "import zmq\nfrom zmq import Context"),
        (without_barred, "zrpc.protocol.calls", "from zrpc.clock import earliest, time_left"),
        (
            without_torch_rpc,
            LOW,
            '"""Not torch.distributed.rpc."""\nimport torch.distributed\nfrom zrpc import rpc_sync',
        ),
        (declared_only, LOW, "import os.path\nimport zmq.utils\nfrom zrpc import api"),
        (light, "zrpc", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import click"),
    ],
)
def test_what_is_allowed_is_not_found(rule: Callable[[dict[str, Module]], list[str]], name: str, source: str) -> None:
    assert rule(planted(name, source, is_package=name == "zrpc")) == []


def test_a_cycle_is_found() -> None:
    tree = planted("zrpc.wire.a", "from zrpc.wire.b import B")
    tree["zrpc.wire.b"] = parse_module("zrpc.wire.b", "from . import a")
    (found,) = rules.check_cycles(tree)
    assert "zrpc.wire.a <- zrpc.wire.b" in found


def test_types_close_no_cycle() -> None:
    tree = planted("zrpc.wire.a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from .b import B")
    tree["zrpc.wire.b"] = parse_module("zrpc.wire.b", "from .a import A")
    assert rules.check_cycles(tree) == []


def test_the_way_to_a_heavy_package_is_shown() -> None:
    tree = planted("zrpc", "from zrpc.wire.a import A", is_package=True)
    tree["zrpc.wire"] = parse_module("zrpc.wire", "from zrpc import ids", is_package=True)
    tree[LOW] = parse_module(LOW, "import yaml")
    assert light(tree) == ["zrpc -> zrpc.wire -> zrpc.ids -> yaml"]


# ------------------------------------------------------------------------------------------- and runs

IMPORTING = """
import os, sys, threading
import psutil
import torch, numpy, zmq, msgpack, cloudpickle  # these may start threads of their own
before = set(sys.modules)
process = psutil.Process()
threads, descriptors = process.num_threads(), process.num_fds()
import zrpc
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert process.num_threads() == threads, process.threads()
assert process.num_fds() == descriptors, process.open_files()
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.startswith("torch.distributed.rpc") and name not in before))
"""


def test_importing_zrpc_does_nothing() -> None:
    """No thread, no socket, no package that is not needed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTING], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    loaded, torch_rpc = done.stdout.split("\n")[:2]
    assert not HEAVY & set(loaded.split())
    assert torch_rpc == ""
