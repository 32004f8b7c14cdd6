"""The systems that are measured, by name: `module` or `module-variant`."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch

from benchmarks.systems.base import System

OURS = "zrpc"
DEFAULT, UV = "tensorpipe", "tensorpipe-uv"
OTHERS = ("pyzmq", "pyro5", "ray")
NAMES = (OURS, DEFAULT, UV, *OTHERS)

NEEDED = {"pyzmq": "zmq", "pyro5": "Pyro5", "ray": "ray"}
"""The modules of other systems."""
UNMEASURED = {
    DEFAULT: {"network", "plain"},  # it would use shared memory
    UV: {"launch"},  # as the default
    "pyzmq": {"references", "cpu", "odd", "backward", "network", "plain", "stages", "startup", "huge", "launch"},
    "pyro5": {"pipelined", "references", "cpu", "odd", "backward", "network", "plain"}
    | {"stages", "startup", "huge", "launch"},
    "ray": {"references", "cpu", "odd", "backward", "network", "plain", "stages", "startup", "huge", "launch"},
}
"""What a system has no such thing as, or what would say nothing."""


def find_system(name: str) -> System:
    """The system of that name. Its module is imported only now: a process has the one system that it measures."""
    module, _, variant = name.partition("-")
    system: System = importlib.import_module(f"benchmarks.systems.{module}").system(variant)
    return system


def is_available(name: str) -> bool:
    """Whether the system is there: torch is built without its own RPC for some platforms, others may be installed."""
    if name.startswith(DEFAULT):
        return hasattr(torch._C, "_rpc_init")
    return name not in NEEDED or find_spec(NEEDED[name]) is not None


def measures(name: str, workload: str) -> bool:
    """Whether a workload is measured with a system."""
    return workload not in UNMEASURED.get(name, ())
