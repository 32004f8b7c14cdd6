"""Backward passes over workers: gradients come in messages, run torch's engine, and go on in messages.

One rule: no thread waits for another worker, but the one that called `backward`. A message is answered when all that it
has set off has been answered.

    BACKWARD, in the envelope's autograd field [context id, message id] and a TorchScript value:
        (GRADIENTS, pass worker, pass number, retain graph, gradients)   of the message with that id
        (MARK, pass worker, pass number, retain graph, message ids)      these will get gradients; [] what is open
        (SETTLE, pass worker, pass number)                               all marks have been made
    answered by (change of the number of open items, ids of the workers that had open items or were visited)

How a pass runs, and what marks are for: `protocol.backward`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch.autograd.graph import GradientEdge

from zrpc.autograd import leaves
from zrpc.autograd.blame import operation_of
from zrpc.autograd.context import DistAutogradContext, PassId
from zrpc.autograd.ddp import Reduction
from zrpc.autograd.functions import RECEIVED_NAME, SENT_NAME, Received
from zrpc.autograd.passes import Gradients, PassState
from zrpc.autograd.tally import Tally
from zrpc.errors import AutogradMisuse, BackwardFault, FrameError, WorkerLost, ZrpcError
from zrpc.ids import WorkerInfo
from zrpc.protocol.backward import ROOTS, Step
from zrpc.runtime.profiled_pass import named
from zrpc.wire.envelope import Kind

if TYPE_CHECKING:
    from zrpc.runtime.agent import Agent

T = TypeVar("T")

GRADIENTS: Final = 0
MARK: Final = 1
SETTLE: Final = 2


class Engine:
    """Runs this worker's part of backward passes. Safe to use from any thread."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._reduction = Reduction()
        self.running: Counter[int] = Counter()
        """Passes that began here and have not ended, by context."""

    @property
    def info(self) -> WorkerInfo:
        """This worker."""
        return self._agent.info

    # ------------------------------------------------------------------------------------ what is told

    def begin(
        self,
        context: DistAutogradContext,
        pass_id: PassId,
        roots: Sequence[torch.Tensor],
        retain_graph: bool,
        tally: Tally,
    ) -> None:
        """Begin a pass at its roots."""
        edges = [torch.autograd.graph.get_gradient_edge(root) for root in roots]
        with context.lock:
            state = self._new_state(context, pass_id, retain_graph, edges)
            state.arrived[ROOTS] = [torch.ones_like(root) for root in roots]
        self._step(context, pass_id, state, lambda: state.machine.arrive(ROOTS), tally)

    def gradients_came(
        self,
        context: DistAutogradContext,
        pass_id: PassId,
        number: int,
        gradients: Gradients,
        retain_graph: bool,
        tally: Tally,
    ) -> None:
        """The gradients of a message that left here are back."""
        with named(SENT_NAME), context.lock:
            state = self._state(context, pass_id, retain_graph)
            sent = context.sent.get(number)
            if sent is None or number not in state.edges:
                raise FrameError(
                    f"gradients for message {number} of context {context.context_id}, which did not leave here, or whose "
                    "graph has been used up by an earlier backward pass: pass retain_graph=True to that one"
                )
            if len(gradients) != len(sent.edges):
                raise FrameError(f"{len(gradients)} gradients for the {len(sent.edges)} tensors of message {number}")
            if number not in state.arrived:  # else the machine refuses it
                state.arrived[number] = gradients
        self._step(context, pass_id, state, lambda: state.machine.arrive(number), tally)

    def mark(
        self,
        context: DistAutogradContext,
        pass_id: PassId,
        numbers: Sequence[int],
        retain_graph: bool,
        tally: Tally,
    ) -> None:
        """Messages that left here will get gradients; none: find out which others will, because of what is open here."""
        with context.lock:
            state = self._state(context, pass_id, retain_graph)
            terminals = state.machine.mark(numbers) if numbers else state.machine.mark_open()
        tally.note(workers=(self._agent.info.id,))
        by_sender: dict[tuple[int, int], list[int]] = {}
        for terminal in terminals:
            received = state.survey.received[terminal]
            by_sender.setdefault(received.sender, []).append(received.number)
        for sender, found in by_sender.items():
            self._tell(sender, context, found[0], (MARK, *pass_id, retain_graph, found), tally)

    def settle(self, context: DistAutogradContext, pass_id: PassId, tally: Tally) -> None:
        """All marks have been made: what is neither there nor marked is not waited for."""
        with context.lock:
            state = context.passes.get(pass_id)
        if state is not None:
            self._step(context, pass_id, state, state.machine.settle, tally)

    # ------------------------------------------------------------------------------------ what is done

    def _state(self, context: DistAutogradContext, pass_id: PassId, retain_graph: bool) -> PassState:
        """The state of a pass here; a new one when it has not come here before. With the lock of the context held."""
        state = context.passes.get(pass_id)
        return self._new_state(context, pass_id, retain_graph, None) if state is None else state

    def _new_state(self, context: DistAutogradContext, pass_id: PassId, retain_graph: bool, roots: Any) -> PassState:
        edges: dict[int, Any] = {number: sent.edges for number, sent in context.sent.items()}
        if roots is not None:
            edges[ROOTS] = roots
        state = context.passes[pass_id] = PassState(context.survey(roots), edges, retain_graph)
        return state

    def _step(
        self,
        context: DistAutogradContext,
        pass_id: PassId,
        state: PassState,
        event: Callable[[], Step],
        tally: Tally,
    ) -> None:
        """Give the machine an event, and do what it says until there is nothing more to do."""
        if state.failure is not None:
            tally.note(error=state.failure)
            return
        machine = state.machine
        me = self._agent.info.id

        def advance(event: Callable[[], Step]) -> Step:
            with context.lock:
                before = state.open_items()
                step = event()
                change = state.open_items() - before
                if machine.is_over():
                    context.passes.pop(pass_id, None)
            tally.note(change, (me,) if change > 0 else ())
            return step

        try:
            todo = [advance(event)]
            while todo:
                step = todo.pop()
                self._complete(context, pass_id, state, step.complete, tally)
                for run in step.runs:
                    found = self._blaming(state.run, run, edges=state.edges_of(run))
                    with context.lock:
                        state.add(found)
                        if not run.keep:
                            context.forget(run.sources)
                    todo.append(advance(lambda run=run: machine.finish(run)))  # type: ignore[misc]
        except BaseException as error:
            state.failure = error
            raise

    def _complete(
        self,
        context: DistAutogradContext,
        pass_id: PassId,
        state: PassState,
        terminals: Iterable[int],
        tally: Tally,
    ) -> None:
        """Pass on the gradients of messages; keep those of leaves."""
        me = self._agent.info.id
        for terminal in terminals:
            with context.lock:
                gradients = state.sums.pop(terminal, None)
            received = state.survey.received.get(terminal)
            if received is not None:
                self._pass_on(context, pass_id, state, received, gradients or [None] * received.tensors, tally)
            elif terminal in state.survey.foreign:
                if gradients is not None and any(gradient is not None for gradient in gradients):
                    raise AutogradMisuse(
                        "the graph leads to a tensor that was received in another distributed autograd context, which has "
                        "ended or is not the one of this pass: receive it again in this context, or detach() it"
                    )
            elif gradients is not None and gradients[0] is not None:
                if context.is_reduced(state.survey.leaves[terminal]):
                    state.unreduced[terminal] = gradients[0]
                    tally.note(1, (me,))
                else:
                    self._blaming(self._keep, context, state, terminal, gradients[0])
        if state.unreduced:
            self._reduce(context, state, tally)

    def _reduce(self, context: DistAutogradContext, state: PassState, tally: Tally) -> None:
        """Have the reducers average the gradients of their parameters, when all of those are whole."""
        survey = state.survey
        with context.lock:
            reduced = [terminal for terminal, leaf in survey.leaves.items() if context.is_reduced(leaf)]
            if any(state.machine.is_awaited(terminal) for terminal in reduced):
                return
            found, state.unreduced = state.unreduced, {}
        pairs = [(survey.leaves[terminal], gradient) for terminal, gradient in found.items()]
        pairs.sort(key=lambda pair: context.reduction_order(pair[0]), reverse=True)
        for leaf, gradient in self._blaming(self._reduction.run, pairs):
            context.accumulate(leaf, gradient)
        tally.note(-len(found))

    def _keep(self, context: DistAutogradContext, state: PassState, terminal: int, gradient: torch.Tensor) -> None:
        """A leaf's gradient is whole: call its hooks, add it to the context."""
        leaf = state.survey.leaves[terminal]
        node = state.survey.inputs[terminal][0].node
        if terminal in state.partial:
            gradient = leaves.whole(leaf, gradient)
        gradient = leaves.before_accumulation(node, gradient)
        context.accumulate(leaf, gradient)
        leaves.after_accumulation(node, gradient)

    def _blaming(self, function: Callable[..., T], *args: Any, edges: Sequence[GradientEdge] = ()) -> T:
        """Call what runs user code; what it raises says where, and in which operation of the graph behind some edges."""
        try:
            return function(*args)
        except ZrpcError:
            raise
        except Exception as error:
            info = self._agent.info
            operation = operation_of(error, edges)
            raise BackwardFault(info.name, info.id, operation, str(error) or type(error).__name__) from error

    def _pass_on(
        self,
        context: DistAutogradContext,
        pass_id: PassId,
        state: PassState,
        received: Received,
        gradients: Gradients,
        tally: Tally,
    ) -> None:
        value = (GRADIENTS, *pass_id, state.retain_graph, list(gradients))
        with named(RECEIVED_NAME):
            self._tell(received.sender, context, received.number, value, tally)

    def _tell(self, to: tuple[int, int], context: DistAutogradContext, number: int, value: Any, tally: Tally) -> None:
        """Send a message of a pass; its answer goes to the tally."""
        self.send(to, (context.context_id, number), value, tally)

    def send(self, to: tuple[int, int], autograd: tuple[int, int], value: Any, tally: Tally) -> None:
        """Send a message of a pass to a life of a worker (incarnation 0: the present one)."""
        agent = self._agent
        tally.expect()
        try:
            peer = agent.peers.find_life(to)
            if peer is None:
                name = agent.references.info_of(to[0]).name
                gone = agent.peers.find_gone(to[0])
                raise WorkerLost(
                    name, gone[1] if gone else "it is not in the cluster any more", "passing gradients back"
                )

            def answered(answer: Any, error: BaseException | None) -> None:
                if error is None:
                    with contextlib.suppress(TypeError, ValueError):
                        change, workers = answer
                        tally.report(int(change), map(int, workers), None)
                        return
                    what = f"worker {peer.info.name!r} answered a message of a backward pass with {answer!r:.80}"
                    error = FrameError(what)
                tally.report(0, (), error)

            agent.caller.ask(peer, Kind.BACKWARD, "the backward pass", -1, answered, value, autograd)
        except BaseException as error:
            tally.report(0, (), error)
