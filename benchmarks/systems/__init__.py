"""The systems that are measured, by name: `module` or `module-variant`."""

from __future__ import annotations

import importlib

import torch

from benchmarks.systems.base import System

OURS = "zrpc"
NAMES = (OURS, "tensorpipe", "tensorpipe-uv")


def find_system(name: str) -> System:
    """The system of that name. Its module is imported only now: a process has the one system that it measures."""
    module, _, variant = name.partition("-")
    system: System = importlib.import_module(f"benchmarks.systems.{module}").system(variant)
    return system


def is_available(name: str) -> bool:
    """Whether the system is there: torch is built without its own RPC for some platforms."""
    return not name.startswith("tensorpipe") or hasattr(torch._C, "_rpc_init")
