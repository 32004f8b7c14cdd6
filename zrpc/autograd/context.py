"""A distributed autograd context, as one worker has it: the messages that were recorded here, and the gradients.

One rule: the lock guards what is recorded and what has been summed up; torch's engine runs outside of it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from zrpc.autograd import leaves
from zrpc.autograd.functions import Node, Received, Sent, record_received, record_sent
from zrpc.autograd.graph import Survey, survey
from zrpc.autograd.passes import PassState
from zrpc.errors import FrameError
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.profiled_pass import ProfiledPass

PassId = tuple[int, int]
"""Names a backward pass: the worker where it began, and a number that is unique there."""


class Spread(Protocol):
    """Who knows of a context."""

    def passed_on(self, context_id: int, to: WorkerKey) -> bool:
        """A message of the context is about to be sent to this worker. False when the context has ended."""

    def known_to(self, context_id: int) -> set[int]:
        """The ids of the workers that messages of the context were sent to."""


class DistAutogradContext:
    """What this worker has recorded in one context. Made by the book of contexts."""

    def __init__(self, context_id: int, next_number: Callable[[], int], spread: Spread) -> None:
        self.context_id = context_id
        self.lock = threading.Lock()
        self.sent: dict[int, Sent] = {}
        self.received: dict[int, Received] = {}
        self.passes: dict[PassId, PassState] = {}
        self.profiled: dict[PassId, ProfiledPass] = {}
        """Passes that began here, under one of torch's profilers."""
        self.gradients: dict[torch.Tensor, torch.Tensor] = {}
        self._next_number = next_number
        self._spread = spread
        self._moments = itertools.count()
        self._survey: Survey | None = None
        self._reduced: dict[int, torch.Tensor] = {}

    def __repr__(self) -> str:
        return (
            f"<DistAutogradContext {self.context_id} sent={len(self.sent)} received={len(self.received)} "
            f"gradients={len(self.gradients)}>"
        )

    # ------------------------------------------------------------------------------------ recording

    def record_sent(self, tensors: Sequence[torch.Tensor], to: WorkerKey) -> int | None:
        """Tensors, all of which require grad, leave for a worker in one message; returns its number.

        None when the context has ended: the message is not of it. A worker that came into it now would not be told.
        """
        if not self._spread.passed_on(self.context_id, to):
            return None
        number = self._next_number()
        if tensors:
            with self.lock:
                self.sent[number] = record_sent(number, to, next(self._moments), tensors)
                self._survey = None
        return number

    def record_received(self, number: int, sender: WorkerKey, tensors: Sequence[torch.Tensor]) -> None:
        """Tensors that were recorded under a number have come; they become part of a graph here, in place."""
        with self.lock:
            if number in self.received:
                raise FrameError(f"message {number} of context {self.context_id} came twice")
            self.received[number] = record_received(number, sender, next(self._moments), tensors)

    # ------------------------------------------------------------------------------------ passes

    def survey(self, roots: Sequence[torch.autograd.graph.GradientEdge] | None = None) -> Survey:
        """The graph from the messages that left here on, and from these roots if the pass began here. With the lock held.

        Kept until another message leaves.
        """
        if roots is None and self._survey is not None:
            return self._survey
        sources = [(number, sent.moment, sent.edges) for number, sent in self.sent.items()]
        nodes: dict[Node, Received] = {received.node: received for received in self.received.values()}
        if roots is not None:
            return survey([*sources, (-1, next(self._moments), roots)], nodes)
        self._survey = survey(sources, nodes)
        return self._survey

    def forget(self, numbers: Sequence[int]) -> None:
        """Messages whose graph has been used up. With the lock held."""
        for number in numbers:
            if self.sent.pop(number, None) is not None:
                self._survey = None

    def accumulate(self, leaf: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add to the gradient of a leaf. Nothing else uses the memory of `gradient`."""
        with self.lock:
            total = leaves.add_up(self.gradients.get(leaf), gradient)
            assert total is not None
            self.gradients[leaf] = total

    def note_reduced(self, parameters: Iterable[torch.Tensor]) -> None:
        """These parameters' gradients are averaged over a process group (see `ddp`)."""
        self._reduced.update((id(parameter), parameter) for parameter in parameters)

    def is_reduced(self, leaf: torch.Tensor) -> bool:
        """Whether a leaf is such a parameter."""
        return id(leaf) in self._reduced

    def reduction_order(self, leaf: torch.Tensor) -> int:
        """The place of such a parameter among them, the same in every process of the group."""
        return list(self._reduced).index(id(leaf))

    # ------------------------------------------------------------------------------------ torch's names

    def _context_id(self) -> int:
        return self.context_id

    def _known_worker_ids(self) -> set[int]:
        return self._spread.known_to(self.context_id)

    def _send_functions(self) -> dict[int, Node]:
        with self.lock:
            return {number: sent.node for number, sent in self.sent.items()}

    def _recv_functions(self) -> dict[int, Node]:
        with self.lock:
            return {number: received.node for number, received in self.received.items()}
