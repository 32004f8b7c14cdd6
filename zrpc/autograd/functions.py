"""The ends of a recorded graph in torch's autograd: a node where tensors leave, a node where they arrive.

One rule: one node for a message. Neither node's `backward` is ever called: the engine captures the gradient that comes to
the one, and starts from behind the other.

The names of the two nodes are those of torch's own, which programs (and torch's tests) look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.autograd.graph import GradientEdge

from zrpc.protocol.calls import WorkerKey

RECEIVED_NAME: Final = "torch::distributed::autograd::RecvRpcBackward"
SENT_NAME: Final = "torch::distributed::autograd::SendRpcBackward"


def _no_backward(_context: Any, *_gradients: Any) -> Any:
    raise RuntimeError(
        "this graph goes on on another worker: gradients are computed by zrpc.autograd.backward(context_id, roots), "
        "not by backward() of a tensor"
    )


def _leave(_context: Any, *_tensors: torch.Tensor) -> torch.Tensor:
    return torch.zeros(())


def _arrive(context: Any, _anchor: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    context.mark_dirty(
        *tensors
    )  # so that the very tensors get a history, and are no views: they may be changed in place
    return tensors


def _function(node_name: str, forward: Any) -> Any:
    name = node_name.removesuffix("Backward")
    methods = {"forward": staticmethod(forward), "backward": staticmethod(_no_backward), "__doc__": forward.__doc__}
    make: Any = type(torch.autograd.Function)
    return make(name, (torch.autograd.Function,), methods)


_Sent: Final[Any] = _function(SENT_NAME, _leave)
_Received: Final[Any] = _function(RECEIVED_NAME, _arrive)

Node = Any
"""A node of torch's autograd graph."""
RECEIVED_TYPE: Final[type] = _Received._backward_cls
"""The class of the nodes where tensors arrive."""


class Sent(NamedTuple):
    """A message that left with tensors of the graph.

    `edges` are where their gradients go on, in the tensors' order. `anchor` keeps the graph behind them alive.
    """

    number: int
    to: WorkerKey
    moment: int
    anchor: torch.Tensor
    edges: tuple[GradientEdge, ...]

    @property
    def node(self) -> Node:
        """The node, as torch shows it."""
        return self.anchor.grad_fn


class Received(NamedTuple):
    """A message that came with tensors of a graph: its node has one output for each. It lives as long as they do."""

    number: int
    sender: WorkerKey
    moment: int
    tensors: int
    node: Node


def record_sent(number: int, to: WorkerKey, moment: int, tensors: Sequence[torch.Tensor]) -> Sent:
    """Make the node for tensors, all of which require grad, that leave in one message."""
    with torch.inference_mode(False), torch.enable_grad():
        anchor = _Sent.apply(*tensors)
    edges = tuple(GradientEdge(node, output) for node, output in anchor.grad_fn.next_functions)
    return Sent(number, to, moment, anchor, edges)


def record_received(number: int, sender: WorkerKey, moment: int, tensors: Sequence[torch.Tensor]) -> Received:
    """Make tensors that came in one message, none of which requires grad, the outputs of one node, in place."""
    with torch.inference_mode(False), torch.enable_grad():
        outputs = _Received.apply(torch.zeros((), requires_grad=True), *tensors)
    return Received(number, sender, moment, len(tensors), outputs[0].grad_fn)


def edge_of(node: Node, output: int = 0) -> GradientEdge:
    """The place where the gradient of a node's output is captured."""
    return GradientEdge(node, output)
