"""Putting zrpc in torch's place, in this process and in those that it starts.

One rule: after `install`, a program that uses `torch.distributed.rpc` by that name uses zrpc, and nothing of torch's RPC
is started; what is not zrpc's is left as it was.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from torch.jit import _builtins

from zrpc.compat.aliases import ATTRIBUTES, RPC, Alias, find_module, make_aliases

VARIABLE = "ZRPC_COMPAT"
"""Set to 1: Python processes whose `sitecustomize` is the one in `hook` install zrpc when torch is imported."""
HOOK = Path(__file__).parent / "hook"


def install(children: bool = True) -> None:
    """Have `torch.distributed.rpc`, `.autograd`, `.optim.DistributedOptimizer` and `.nn.RemoteModule` mean zrpc's.

    Call it before the program imports them: names that were imported before stay torch's. `children`: Python processes
    that this one starts do the same, by `ZRPC_COMPAT` and `PYTHONPATH` in the environment. May be called again.
    """
    if children:
        _tell_children()
    if is_installed():
        return
    _settle_builtins()
    aliases = make_aliases()
    for name in [name for name in sys.modules if name.startswith(f"{RPC}.")]:
        del sys.modules[name]
    sys.modules.update(aliases)
    for name, alias in aliases.items():
        parent, _, leaf = name.rpartition(".")
        holder = sys.modules.get(parent)
        if holder is not None:
            setattr(holder, leaf, alias)
    _set_attributes()


def is_installed() -> bool:
    """Whether zrpc is in torch's place in this process."""
    return isinstance(sys.modules.get(RPC), Alias)


def _settle_builtins() -> None:
    """TorchScript's table of what it calls natively is made once, on demand, and names torch's own functions."""
    make = getattr(_builtins, "_get_builtin_table", None)
    if make is not None:
        make()


def _set_attributes() -> None:
    for module, attribute, home in ATTRIBUTES:
        found = find_module(home)
        if found is not None and hasattr(found, attribute):
            setattr(importlib.import_module(module), attribute, getattr(found, attribute))


def _tell_children() -> None:
    os.environ[VARIABLE] = "1"
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(HOOK) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HOOK), *paths])
