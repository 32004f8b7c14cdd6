"""The contexts of one worker: begun here, joined with calls, ended everywhere; and the messages of backward passes.

One rule: `protocol.contexts` decides who is told of an end; this sends it, and keeps the contexts themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from zrpc.autograd import ddp
from zrpc.autograd.context import DistAutogradContext, PassId
from zrpc.autograd.engine import GRADIENTS, MARK, SETTLE, Engine
from zrpc.autograd.passing import check_roots, run_pass
from zrpc.autograd.tally import Tally
from zrpc.clock import Clock, monotonic
from zrpc.errors import AutogradMisuse, FrameError, ZrpcError
from zrpc.protocol.calls import WorkerKey
from zrpc.protocol.contexts import ContextTable, Maker, SendCleanup, first_id
from zrpc.protocol.outbox import Peer
from zrpc.runtime.context import running
from zrpc.runtime.profiled_pass import ProfiledPass
from zrpc.runtime.profiling import is_profiling
from zrpc.runtime.tasks import Asker, Task
from zrpc.wire.envelope import Codec, Envelope, Kind
from zrpc.wire.messages import Member

if TYPE_CHECKING:
    from zrpc.runtime.agent import Agent

logger = logging.getLogger(__name__)

ENGINE_KEY = "zrpc.autograd"
"""What the pool remembers the time of torch's engine under."""
NO_CONTEXT = "Could not find autograd context with id: {}"


class ContextBook:
    """The contexts that an agent takes part in. Safe to use from any thread. A timer of the receiver's."""

    def __init__(self, agent: Agent, clock: Clock = monotonic) -> None:
        self._agent = agent
        self._clock = clock
        self._lock = threading.Lock()
        identity = agent.identity
        self._me = Peer(identity.info.id, identity.incarnation)
        self._table = ContextTable(self._me, identity.life)
        self._contexts: dict[int, DistAutogradContext] = {}
        self._unacknowledged: list[tuple[Asker, Envelope]] = []
        # The numbers of recorded messages, and of passes, are unique as context ids are.
        self._numbers = itertools.count(first_id(identity.info.id, identity.life))
        self._passes = itertools.count(1)
        self.engine = Engine(agent)

    def __len__(self) -> int:
        return len(self._contexts)

    # ------------------------------------------------------------------------------------ contexts

    def begin(self) -> DistAutogradContext:
        """A new context, made here."""
        with self._lock:
            return self._enter(self._table.begin())

    def join(self, context_id: int, sender: WorkerKey) -> DistAutogradContext | None:
        """The context of a call that came, made here if it is new; None if it has ended."""
        with self._lock:
            context = self._contexts.get(context_id)
            if context is None and self._table.join(context_id, self._lives(), self._clock()):
                context = self._enter(context_id)
                is_strange = self._table.next_deadline() is not None
            else:
                is_strange = False
        if is_strange:
            self._agent.receiver.expect(self.next_deadline())
        return context

    def _lives(self) -> set[Maker]:
        return {(member.id, member.life & 0xFFFF) for member in self._agent.members()}

    def find(self, context_id: int) -> DistAutogradContext | None:
        """A context that this worker takes part in."""
        return self._contexts.get(context_id)

    def get(self, context_id: int) -> DistAutogradContext:
        """The same; raises `AutogradMisuse` when there is none of that id."""
        context = self._contexts.get(context_id)
        if context is None:
            raise AutogradMisuse(NO_CONTEXT.format(context_id))
        return context

    def _enter(self, context_id: int) -> DistAutogradContext:
        context = DistAutogradContext(context_id, self._numbers.__next__, self)
        self._contexts[context_id] = context
        return context

    def passed_on(self, context_id: int, to: WorkerKey) -> bool:
        """A message of the context is about to be sent to this worker. False when the context has ended."""
        with self._lock:
            return self._table.passed_on(context_id, Peer(*to))

    def known_to(self, context_id: int) -> set[int]:
        """The ids of the workers that this one has passed a context on to."""
        with self._lock:
            return {peer.worker_id for peer in self._table.known_to(context_id)}

    def largest_id(self) -> int:
        """The largest context id that this worker can give."""
        return self._table.largest_id()

    # ------------------------------------------------------------------------------------ ends

    def release(self, context_id: int, told_by: Peer | None = None) -> None:
        """End a context, here and on every worker that it has come to. Does nothing if it has ended."""
        members = self._members()
        with self._lock:
            self._contexts.pop(context_id, None)
            effects = self._table.release(context_id, members, self._clock(), told_by)
        self._send_cleanups(effects)

    def _members(self) -> list[Peer]:
        return [Peer(member.id, member.incarnation) for member in self._agent.members()]

    def _send_cleanups(self, effects: Sequence[SendCleanup]) -> None:
        for effect in effects:
            self._send_cleanup(effect)
        if effects:
            self._agent.receiver.expect(self.next_deadline())

    def _send_cleanup(self, effect: SendCleanup) -> None:
        peer = self._agent.peers.find_life(effect.to)
        if peer is None:
            return  # it is sent again, until the worker is found or is lost

        def answered(_value: Any, error: BaseException | None) -> None:
            if error is None:
                with self._lock:
                    self._table.cleanup_acknowledged(effect)
                self._acknowledge()

        try:
            what = "the end of an autograd context"
            self._agent.caller.ask(peer, Kind.CONTEXT_CLEANUP, what, 5.0, answered, None, (effect.context_id, 0))
        except ZrpcError as error:
            logger.debug("the end of context %d not sent to %s: %s", effect.context_id, peer, error)

    def on_cleanup(self, asker: Asker, envelope: Envelope, _is_local: bool) -> None:
        """A context has ended, says whoever passed it on to us."""
        if envelope.autograd is None:
            raise FrameError("the end of an autograd context without its id")
        self.release(envelope.autograd[0], _sender_of(envelope))
        with self._lock:
            self._unacknowledged.append((asker, envelope))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Answer the cleanups that nothing is left of: all that they have set off are answered."""
        with self._lock:
            owed = [self._table.owes_acknowledgement(_context_of(e), _sender_of(e)) for _, e in self._unacknowledged]
            done = [pair for pair, is_owed in zip(self._unacknowledged, owed, strict=True) if not is_owed]
            self._unacknowledged = [pair for pair, is_owed in zip(self._unacknowledged, owed, strict=True) if is_owed]
        for asker, envelope in done:
            self._agent.callee.answer_value(asker, envelope, None, Codec.SCRIPT, 0, None)

    def on_loss(self, member: Member, _why: str) -> None:
        """A member is gone, and with it the contexts that it made."""
        members = self._members()
        with self._lock:
            lost = Peer(member.id, member.incarnation)
            ended, effects = self._table.peer_lost(lost, member.life, members, self._clock())
        self._send_cleanups(effects)
        for context_id in ended:
            self.release(context_id)
        self._acknowledge()

    def next_deadline(self) -> float | None:
        with self._lock:
            return self._table.next_deadline()

    def on_timer(self, now: float) -> None:
        with self._lock:
            effects = self._table.timer_fired(now)
            self._table.postpone(self._agent.broker_since())
            ended = self._table.strangers_due(self._lives(), now)
        self._send_cleanups(effects)
        for context_id in ended:
            self.release(context_id)

    # ------------------------------------------------------------------------------------ backward

    def backward(self, context_id: int, roots: Sequence[torch.Tensor], retain_graph: bool) -> None:
        """Compute the gradients of a context from these roots on, on all workers; see `zrpc.autograd.backward`."""
        context = self.get(context_id)
        check_roots(roots)
        pass_id = self._agent.info.id, next(self._passes)
        self.engine.running[context_id] += 1
        try:
            with self._agent.tracer.span("backward"), self._profiled(context, pass_id):
                run_pass(self.engine, context, pass_id, roots, retain_graph)
        finally:
            self.engine.running[context_id] -= 1
            self.engine.running += Counter()  # drops those at 0
            with context.lock:
                context.passes.pop(pass_id, None)

    @contextlib.contextmanager
    def _profiled(self, context: DistAutogradContext, pass_id: PassId) -> Iterator[None]:
        """If this thread is profiled, the pass is in its profile."""
        if not is_profiling():
            yield
            return
        with ProfiledPass(self._agent.info.id) as profiled:
            context.profiled[pass_id] = profiled
            try:
                yield
            finally:
                del context.profiled[pass_id]

    def on_backward(self, asker: Asker, envelope: Envelope, is_local: bool) -> None:
        """A message of a backward pass came. torch's engine may run long."""
        if not self._agent.callee.is_first(envelope):
            return  # the network has repeated it; the first one is answered
        task = Task(asker, envelope, None, self._clock())

        def job() -> None:
            if envelope.trace is not None:
                self._agent.tracer.serve(envelope, "backward", task.arrived, self._clock())
            self._serve(task)

        if is_local:
            self._agent.executor.submit(job, ENGINE_KEY)
        else:
            self._agent.executor.run(job, ENGINE_KEY)

    def _serve(self, task: Task) -> None:
        agent, envelope = self._agent, task.envelope

        def done(change: int, workers: frozenset[int], error: BaseException | None) -> None:
            if error is not None:
                agent.callee.answer_error(task.asker, envelope, error, 0)
            else:
                answer = (change, sorted(workers))
                agent.callee.answer_value(task.asker, envelope, answer, Codec.SCRIPT, 0, task.deadline)

        tally = Tally(done)
        saved = running.scope
        running.scope = task
        try:
            self._take(envelope, tally)
        except BaseException as error:
            tally.note(error=error)
        finally:
            running.scope = saved
        tally.close()

    def _take(self, envelope: Envelope, tally: Tally) -> None:
        if envelope.autograd is None:
            raise FrameError("a message of a backward pass without a context")
        context_id, number = envelope.autograd
        value = self._agent.values.read(envelope)
        if type(value) is not tuple or len(value) < 3 or any(type(part) is not int for part in value[:3]):
            raise FrameError("a message of a backward pass that names no pass")
        what, pass_id, rest = value[0], (value[1], value[2]), value[3:]
        context = self.get(context_id)
        if what == GRADIENTS and len(rest) == 2 and _is_gradients(rest[1]):
            profiled = context.profiled.get(pass_id)
            arguments = context, pass_id, number, rest[1], rest[0] is True, tally
            if profiled is None:
                self.engine.gradients_came(*arguments)
            else:
                profiled.record(self.engine.gradients_came, *arguments)
        elif what == MARK and len(rest) == 2 and _is_numbers(rest[1]):
            self.engine.mark(context, pass_id, rest[1], rest[0] is True, tally)
        elif what == SETTLE and not rest:
            self.engine.settle(context, pass_id, tally)
        else:
            raise FrameError(f"a message of a backward pass that is none ({what})")


def _context_of(envelope: Envelope) -> int:
    return 0 if envelope.autograd is None else envelope.autograd[0]


def _sender_of(envelope: Envelope) -> Peer:
    return Peer(envelope.sender, envelope.sender_incarnation)


def _is_gradients(value: Any) -> bool:
    return type(value) is list and all(part is None or isinstance(part, torch.Tensor) for part in value)


def _is_numbers(value: Any) -> bool:
    return type(value) is list and all(type(part) is int for part in value)


def attach(agent: Agent) -> ContextBook:
    """Give an agent, which is yet to be started, its book of contexts."""
    book = ContextBook(agent)
    agent.values.contexts = book
    agent.extensions[Kind.BACKWARD] = book.on_backward
    agent.extensions[Kind.CONTEXT_CLEANUP] = book.on_cleanup
    agent.at_loss.append(book.on_loss)
    agent.receiver.add_timer(book)
    ddp.watch()
    return book
