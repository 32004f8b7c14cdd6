"""A model as a chain of modules on workers, which a batch goes through in parts.

One rule: what one stage has made goes from its worker to the next stage's; only the last stage's comes here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zrpc.api import remote, rpc_async
from zrpc.nn import owner
from zrpc.nn.api.remote_module import _RemoteModule
from zrpc.rref import RRef


class Stage:
    """One stage on its worker: takes one part at a time, since a module need not bear more."""

    def __init__(self, module: RRef[nn.Module]) -> None:
        self._module = module.local_value()
        self._lock = threading.Lock()

    def run(self, x: RRef[Tensor]) -> Any:
        """The module's result for a value that is on the stage before."""
        value = x.to_here()
        with self._lock:
            return self._module(value)


def _run(stage: RRef[Stage], x: RRef[Tensor]) -> Any:
    return stage.local_value().run(x)


class Pipeline:
    """Calls modules one after the other, each on its worker, with parts of a batch under way at the same time.

    `stages` are `RemoteModule`s or RRefs to modules, each of which takes a tensor and returns one; `parts` is in how many a
    batch is cut along dimension 0. Within a distributed autograd context gradients flow back the same way.
    """

    def __init__(self, stages: Sequence[_RemoteModule | RRef[Any]], parts: int = 1) -> None:
        if not stages or parts < 1:
            raise ValueError(f"a pipeline has one stage and one part at least, not {len(stages)} and {parts}")
        self.modules = [stage.module_rref if isinstance(stage, _RemoteModule) else stage for stage in stages]
        self.parts = parts
        self._stages: list[RRef[Stage]] = [remote(rref.owner(), Stage, (rref,)) for rref in self.modules]

    def __call__(self, x: Tensor) -> Tensor:
        """The last stage's result for `x`, [n, ...] -> [n, ...]. Raises the first error of a stage."""
        return torch.cat(torch.futures.wait_all([self._begin(part) for part in x.chunk(self.parts)]))

    def _begin(self, x: Tensor) -> torch.futures.Future[Tensor]:
        value: RRef[Any] = RRef(x)
        for stage in self._stages[:-1]:
            value = remote(stage.owner(), _run, (stage, value))
        return rpc_async(self._stages[-1].owner(), _run, (self._stages[-1], value))

    def parameters(self) -> list[RRef[nn.Parameter]]:
        """References to the parameters of all stages, in order, as `DistributedOptimizer` takes them."""
        futures: list[torch.futures.Future[Any]] = [
            rpc_async(rref.owner(), owner.parameters_of, (rref, True)) for rref in self.modules
        ]
        return [parameter for found in torch.futures.wait_all(futures) for parameter in found]
