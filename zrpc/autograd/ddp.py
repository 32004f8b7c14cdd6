"""Parameters of `DistributedDataParallel`: their gradients are averaged over its process group before they are kept.

One rule: the reducer of such a module works in hooks of torch's engine, on `.grad`. So the engine is run once more, over
nothing but the nodes that accumulate into `.grad`, with `.grad` empty before and put back after.

Which parameters those are is noted when such a module is used in a context (`watch`).
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from zrpc.autograd.context import DistAutogradContext
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.recording import recorder

PAUSE: Final = 0.01
"""Seconds for the threads of a process group to let go of what they have done. They need some microseconds, and a turn of
the interpreter lock."""


class Reduction:
    """Has the reducers of the process's DistributedDataParallel modules do their work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def run(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The averaged gradients of some (parameter, gradient). Waits for the other processes of the group."""
        with blocking_here(), self._lock:
            saved = [leaf.grad for leaf, _ in pairs]
            try:
                for leaf, _ in pairs:
                    leaf.grad = None
                edges = [get_gradient_edge(leaf) for leaf, _ in pairs]
                torch.autograd.backward(edges, [gradient for _, gradient in pairs])
                return [(leaf, gradient if leaf.grad is None else leaf.grad) for leaf, gradient in pairs]
            finally:
                for (leaf, _), before in zip(pairs, saved, strict=True):
                    leaf.grad = before


def _let_group_threads_finish() -> None:
    """Give the interpreter lock away for a moment, before the reducer of a module goes.

    If it is the last to hold its process group, it joins that one's threads, and keeps the lock meanwhile. One of them may
    want the lock to drop a tensor of a collective that is over: they would wait for each other for ever.
    """
    threading.Event().wait(PAUSE)


def watch() -> None:
    """Have contexts note the parameters of DistributedDataParallel modules that are used in them. May be called again."""
    watched: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
    original: Any = DistributedDataParallel._pre_forward
    if hasattr(original, "_zrpc_watches"):
        return

    @functools.wraps(original)
    def pre_forward(module: DistributedDataParallel, *inputs: Any, **kwargs: Any) -> Any:
        context = recorder.get()
        if isinstance(context, DistAutogradContext):
            if module not in watched:
                watched.add(module)
                weakref.finalize(module, _let_group_threads_finish).atexit = False
            if module.require_backward_grad_sync:
                context.note_reduced(parameter for parameter in module.parameters() if parameter.requires_grad)
        return original(module, *inputs, **kwargs)

    vars(pre_forward)["_zrpc_watches"] = True
    setattr(DistributedDataParallel, "_pre_forward", pre_forward)  # noqa: B010  its type says it is a method
