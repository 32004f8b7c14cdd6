"""What distributed autograd is to the runtime: messages are recorded in the context that their call is made in.

One rule: without a context nothing is recorded, and nothing is paid for but the look at one variable.

The context of a thread, or of a task of an event loop, is in a context variable; it goes with a call to its callee, and
from there on with the calls that the function makes. `zrpc.autograd` has the contexts themselves.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch

from zrpc.protocol.calls import WorkerKey


class Recorder(Protocol):
    """A distributed autograd context, as messages see it."""

    @property
    def context_id(self) -> int:
        """Unique in the cluster."""

    def record_sent(self, tensors: Sequence[torch.Tensor], to: WorkerKey) -> int | None:
        """Tensors that require grad leave for a worker in one message; returns the number to send along.

        None when the context has ended: the message must not name it.
        """

    def record_received(self, number: int, sender: WorkerKey, tensors: Sequence[torch.Tensor]) -> None:
        """Tensors that were recorded under that number have come: make them part of a graph here, in place."""


class Contexts(Protocol):
    """The contexts that a worker takes part in."""

    def join(self, context_id: int, sender: WorkerKey) -> Recorder | None:
        """The context of a call that came, made here if it is new; None if it has ended."""

    def find(self, context_id: int) -> Recorder | None:
        """A context that this worker takes part in."""

    def backward(self, context_id: int, roots: Sequence[torch.Tensor], retain_graph: bool) -> None:
        """Compute the gradients of a context from these roots on, on all workers."""


recorder: Final[contextvars.ContextVar[Recorder | None]] = contextvars.ContextVar("zrpc_autograd", default=None)
"""The context that calls are made in now."""


def current_recorder() -> Recorder | None:
    """The context that a message written here and now is recorded in: none where torch records nothing either."""
    found = recorder.get()
    return found if found is not None and torch.is_grad_enabled() else None


def without_parameters(value: Any) -> Any:
    """The same arguments, or result, with views in the place of parameters that require grad.

    A `Parameter` travels by value: what arrives is a parameter of its own. One that is itself an argument, alone or in
    lists, tuples and dicts, is meant as a tensor, whose gradient belongs here. Those of modules stay parameters.
    """
    return _replace(value, {})


def _replace(value: Any, views: dict[int, torch.Tensor]) -> Any:
    kind = type(value)
    if kind is torch.nn.Parameter:
        if not value.requires_grad:
            return value
        view = views.get(id(value))
        if view is None:
            view = views[id(value)] = value.view_as(value)
        return view
    if kind is tuple or kind is list:
        return kind([_replace(item, views) for item in value])
    if kind is dict:
        return {key: _replace(item, views) for key, item in value.items()}
    return value
