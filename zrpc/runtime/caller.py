"""Outgoing calls: from a function and its arguments to an envelope, and from the reply to a result.

One rule: a wrong call raises here, before anything is sent. After that a call ends once: by its reply, its deadline, or
the loss of its worker.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from zrpc.clock import Clock, monotonic
from zrpc.errors import (
    CallTimeout,
    Cancelled,
    FrameError,
    Unavailable,
    UnknownWorker,
    WorkerLost,
    ZrpcError,
)
from zrpc.ids import WorkerInfo
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.callables import Target, identify, refuse_script_method
from zrpc.runtime.context import running
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.futures import Completer, Future, complete
from zrpc.runtime.identity import Identity
from zrpc.runtime.inquiry import ask_about, ask_on_a_lane
from zrpc.runtime.inspection import read_map, write_map
from zrpc.runtime.peers import Peer, PeerBook
from zrpc.runtime.pending import PendingCall, PendingCalls, RRefNumbers, check_timeout
from zrpc.runtime.profiling import Completion, ProfiledCall, is_profiling, profile_key
from zrpc.runtime.raising import kept
from zrpc.runtime.receiver import Receiver
from zrpc.runtime.recording import current_recorder
from zrpc.runtime.scopes import Scope, current_scope
from zrpc.runtime.values import Values
from zrpc.serialization import plainvalues
from zrpc.telemetry.metrics import CallMeter
from zrpc.telemetry.trace import ANSWERED, ENDED, LAST_THREAD, SENT, WRITTEN, Tracer
from zrpc.transport.base import RouteGone
from zrpc.wire.envelope import Buffer, Codec, Envelope, Extra, Kind, pack, pack_sized

_QUIET = (Kind.REMOTE_CALL, Kind.BACKWARD)
"""What is answered to the library itself."""


class Caller:
    """Makes calls for one agent. Safe to use from any thread. A timer of the receiver's."""

    def __init__(
        self,
        identity: Identity,
        peers: PeerBook,
        receiver: Receiver,
        values: Values,
        meter: CallMeter,
        rpc_timeout: float,
        clock: Clock = monotonic,
        tracer: Tracer | None = None,
        pending: PendingCalls | None = None,
    ) -> None:
        self._identity = identity
        self._peers = peers
        self._receiver = receiver
        self._values = values
        self._meter = meter
        self.rpc_timeout = rpc_timeout
        self._clock = clock
        self._tracer = tracer or Tracer()
        self._pending = PendingCalls(clock) if pending is None else pending
        self._next_id = itertools.count(1)
        self.refuses_script_methods = False
        """Whether a method of a ScriptModule is refused as in torch, where programs may count on that."""

    # ------------------------------------------------------------------------------------ calls

    def call_sync(
        self,
        to: str | int | WorkerInfo,
        func: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        timeout: float,
        mode: str = "sync",
    ) -> Any:
        """Call and wait for the result; see `zrpc.rpc_sync`."""
        if is_profiling():
            return self.call_async(to, func, args, kwargs, timeout, mode).wait()
        peer = self._find(to)
        if peer.is_self:
            return self.call_async(to, func, args, kwargs, timeout).wait()
        target = identify(func)
        timeout, deadline = self._deadline(timeout)
        message_id = next(self._next_id)
        envelope = self._write(Kind.CALL, message_id, peer, target, args, kwargs, timeout, deadline)
        return self._exchange_value(peer, target, envelope, message_id, deadline, timeout)

    def call_async(
        self,
        to: str | int | WorkerInfo,
        func: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        timeout: float,
        mode: str = "async",
    ) -> Future[Any]:
        """Call and return a future of the result; see `zrpc.rpc_async`.

        Its callbacks run in the thread state (grad mode and so on) that the call is made in. `mode` is what a profile
        calls this kind of call.
        """
        future: Future[Any] = Future()
        try:
            peer = self._find(to)
        except WorkerLost as error:
            complete(future, None, kept(error))
            return future
        future.place, future.caller = peer, self
        future.message_id = self.call(peer, Kind.CALL, func, args, kwargs, timeout, future, mode=mode)
        return future

    def _find(self, to: str | int | WorkerInfo) -> Peer:
        """The peer of that name. Raises `WorkerLost` for one that was here, `UnknownWorker` for one that never was."""
        try:
            return self._peers.find(to)
        except UnknownWorker:
            gone = self._peers.find_gone(to)
            if gone is None:
                raise
            raise WorkerLost(gone[0].name, gone[1], "calling it") from None

    def call(
        self,
        peer: Peer,
        kind: Kind,
        func: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        timeout: float,
        done: Completion | Future[Any],
        rref: RRefNumbers | None = None,
        mode: str = "remote",
    ) -> int:
        """Send a call; `done` is called once, by the receiving thread, or completed. Raises when nothing was sent.

        Returns its message id, which `cancel` takes.
        """
        target = identify(func)
        if is_profiling():
            done = Completer(done) if isinstance(done, Future) else done
            here = self._identity.info
            key = profile_key(mode, func, target, args or (), here.name, peer.info.name)
            with ProfiledCall(key, here.id, peer.info.id, rref) as profiled:
                if rref is None:
                    done = profiled.finishing(done)
                else:
                    fetch = functools.partial(self.request, peer, Kind.RREF_FETCH, key)
                    done = profiled.following(done, fetch, timeout)
                return self._call(peer, kind, target, args, kwargs, timeout, done, rref, profiled)
        return self._call(peer, kind, target, args, kwargs, timeout, done, rref, None)

    def _call(
        self,
        peer: Peer,
        kind: Kind,
        target: Target,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        timeout: float,
        done: Completion | Future[Any],
        rref: RRefNumbers | None,
        profiled: ProfiledCall | None,
    ) -> int:
        timeout, deadline = self._deadline(timeout)
        message_id = next(self._next_id)
        extra: dict[int, Any] | None = None if profiled is None else {Extra.PROFILE: True}
        envelope = self._write(kind, message_id, peer, target, args, kwargs, timeout, deadline, rref, extra)
        scope = None if running.scope is None or kind != Kind.CALL else current_scope()
        if scope is not None:
            done = scope.left_by(message_id, Completer(done) if isinstance(done, Future) else done)
        self._begin(PendingCall(message_id, peer, target, envelope, deadline, timeout, done, profiled))
        if scope is not None:
            self._enroll(message_id, scope)
        return message_id

    def _enroll(self, message_id: int, scope: Scope) -> None:
        """Have the call cancelled with the one that it is made in."""
        scope.enroll(message_id, functools.partial(self.cancel, message_id))
        if self._pending.get(message_id) is None:  # it has ended
            scope.leave(message_id)

    def request(
        self,
        peer: Peer,
        kind: Kind,
        what: str,
        rref: RRefNumbers,
        timeout: float,
        done: Completion | Future[Any],
        extra: dict[int, Any] | None = None,
        profiled: ProfiledCall | None = None,
    ) -> int:
        """Send a message without a function (a fetch of a remote value) that has a reply; `what` names it in errors.

        Returns its message id, which `cancel` takes.
        """
        timeout, deadline = self._deadline(timeout)
        message_id = next(self._next_id)
        envelope = self._envelope(kind, message_id, peer, timeout, deadline)
        envelope.rref = rref
        envelope.extra = extra
        if extra is None:
            self._record(envelope, peer)
        if self._tracer.is_on:
            self._tracer.begin(envelope, what, peer.info.id)
        target = Target(what, Codec.NONE)
        self._begin(PendingCall(message_id, peer, target, envelope, deadline, timeout, done, profiled))
        return message_id

    def request_sync(self, peer: Peer, kind: Kind, what: str, rref: RRefNumbers, timeout: float) -> Any:
        """As `request`, waiting for the reply's value on a lane."""
        timeout, deadline = self._deadline(timeout)
        message_id = next(self._next_id)
        envelope = self._envelope(kind, message_id, peer, timeout, deadline)
        envelope.rref = rref
        self._record(envelope, peer)
        if self._tracer.is_on:
            self._tracer.begin(envelope, what, peer.info.id)
        return self._exchange_value(peer, Target(what, Codec.NONE), envelope, message_id, deadline, timeout)

    def _record(self, envelope: Envelope, peer: Peer) -> None:
        """The reply belongs to the context that it is asked for in: the value may be part of a graph there."""
        recorder = current_recorder()
        if recorder is not None:
            number = recorder.record_sent((), peer.key)
            envelope.autograd = None if number is None else (recorder.context_id, number)

    def ask(
        self,
        peer: Peer,
        kind: Kind,
        what: str,
        timeout: float,
        done: Completion,
        value: Any = None,
        autograd: tuple[int, int] | None = None,
    ) -> int:
        """Send a message with a value of the TorchScript codec that has a reply; `what` names it in errors."""
        timeout, deadline = self._deadline(timeout)
        message_id = next(self._next_id)
        envelope = self._envelope(kind, message_id, peer, timeout, deadline)
        envelope.autograd = autograd
        if self._tracer.is_on:
            self._tracer.begin(envelope, what, peer.info.id)
        self._values.write(envelope, Codec.SCRIPT, value, peer.key, deadline)
        self._begin(PendingCall(message_id, peer, Target(what, Codec.NONE), envelope, deadline, timeout, done))
        return message_id

    def inspect(
        self, peer: Peer, question: Mapping[str, Any], timeout: float, done: Completion, *, inherits: bool = True
    ) -> None:
        """Ask a worker about itself; the value is the answer's map.

        `inherits`: the question ends with the call that it is made in.
        """
        deadline: float | None = self._clock() + timeout
        if inherits:
            timeout, deadline = self._deadline(timeout)
        message_id = next(self._next_id)
        envelope = self._envelope(Kind.INSPECT, message_id, peer, timeout, deadline)
        self._tracer.mark(envelope)
        write_map(envelope, question)
        target = Target(f"asking for {question.get('what')}", Codec.NONE)
        self._begin(PendingCall(message_id, peer, target, envelope, deadline, timeout, done))

    # ------------------------------------------------------------------------------------ writing

    def deadline_of(self, timeout: float) -> float | None:
        """The deadline that a call with this timeout, made now, would have."""
        return self._deadline(timeout)[1]

    def seconds(self, timeout: float) -> float:
        """`timeout`, or the default for -1."""
        return self.rpc_timeout if check_timeout(timeout) == -1 else timeout

    def _deadline(self, timeout: float) -> tuple[float, float | None]:
        """(timeout in seconds, deadline): the call's own, or what is left of the call that it is made in."""
        timeout = self.rpc_timeout if timeout == -1 else check_timeout(timeout)
        scope = None if running.scope is None else current_scope()
        now = self._clock()
        if scope is None:
            return timeout, now + timeout if timeout else None
        scope.check()
        inherited = scope.deadline
        if inherited is not None and (not timeout or inherited < now + timeout):
            return max(0.0, inherited - now), inherited
        return timeout, now + timeout if timeout else None

    def _envelope(
        self, kind: Kind, message_id: int, peer: Peer, timeout: float = 0.0, deadline: float | None = None
    ) -> Envelope:
        """An envelope for `peer`, sent `timeout` seconds before its deadline."""
        identity = self._identity
        left = 0 if deadline is None else int(timeout * 1e6) or 1
        return Envelope(kind, message_id, identity.info.id, identity.incarnation, peer.incarnation, left)

    def _about(self, kind: Kind, message_id: int, call: Envelope, peer: Peer) -> Envelope:
        """An envelope for what is to be said of a call."""
        envelope = self._envelope(kind, message_id, peer)
        envelope.trace = call.trace
        return envelope

    def _write(
        self,
        kind: Kind,
        message_id: int,
        peer: Peer,
        target: Target,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        timeout: float,
        deadline: float | None,
        rref: RRefNumbers | None = None,
        extra: dict[int, Any] | None = None,
    ) -> Envelope:
        if self.refuses_script_methods:
            refuse_script_method(target)
        envelope = self._envelope(kind, message_id, peer, timeout, deadline)
        envelope.rref = rref
        envelope.extra = extra
        if self._tracer.is_on:
            self._tracer.begin(envelope, target.name, peer.info.id, running.scope is not None)
        self._values.write_call(envelope, peer.key, target, args or (), kwargs or {}, deadline)
        if envelope.span is not None:
            envelope.span[WRITTEN] = self._clock()
        return envelope

    def _pack(self, envelope: Envelope, peer: Peer) -> tuple[list[Buffer], int]:
        """The frames and their size, counted. Forks of references inside are taken back when it is over a limit."""
        try:
            frames, size = pack_sized(envelope, self._peers.limits)
        except ZrpcError:
            self._values.take_back(envelope, peer.key)
            raise
        is_call = envelope.kind <= Kind.REMOTE_CALL and (envelope.extra is None or Extra.CODE not in envelope.extra)
        self._meter.made(size, is_call)
        return frames, size

    # ------------------------------------------------------------------------------------ sending

    def _exchange_value(
        self, peer: Peer, target: Target, envelope: Envelope, message_id: int, deadline: float | None, timeout: float
    ) -> Any:
        """As `_exchange`, returning the value in the reply."""
        try:
            if running.agent is None:  # not a thread of the pool
                reply = self._exchange(peer, target, envelope, message_id, deadline, timeout)
            else:
                with blocking_here():
                    reply = self._exchange(peer, target, envelope, message_id, deadline, timeout)
            value = self._values.read_reply(reply, peer.info)
        except BaseException as error:
            if envelope.span is not None:
                self._tracer.end(envelope.span, type(error).__name__)
            raise
        if envelope.span is not None:
            envelope.span[ENDED] = self._clock()
            if self._tracer.sink is not None:
                self._tracer.tell(envelope.span)
        return value

    def _exchange(
        self, peer: Peer, target: Target, envelope: Envelope, message_id: int, deadline: float | None, timeout: float
    ) -> Envelope:
        """Send on a lane and return the reply. Raises `CallTimeout` and `WorkerLost`."""
        frames, _ = self._pack(envelope, peer)
        scope = None if running.scope is None else current_scope()
        lane = peer.borrow_lane()
        if scope is not None:
            scope.enroll(message_id, lane.ear.wake)
        if envelope.span is not None:
            envelope.span[SENT] = self._clock()
        try:
            while True:
                try:
                    reply = lane.exchange(frames, message_id, deadline, peer, self.on_reply, self._clock, scope)
                    break
                except RouteGone:  # nothing was sent; a lane over ZeroMQ does not end
                    lane = peer.replace_lane(lane)
            while reply is not None and reply.kind == Kind.NEED_CODE:  # once, unless the network repeats it
                frames = self._attach_code(envelope, target, peer)
                reply = lane.exchange(frames, message_id, deadline, peer, self.on_reply, self._clock, scope)
        except Cancelled:
            with contextlib.suppress(Unavailable):
                lane.link.send(pack(self._about(Kind.CANCEL, message_id, envelope, peer)))
            peer.abandon_lane(lane)
            raise
        except BaseException:
            peer.abandon_lane(lane)
            raise
        finally:
            if scope is not None:
                scope.leave(message_id)
        if reply is None:
            peer.abandon_lane(lane)
            question = self._about(Kind.INSPECT, next(self._next_id), envelope, peer)
            state = ask_on_a_lane(peer, question, (message_id, envelope.rref), self.on_reply, self._clock)
            raise CallTimeout(peer.info.name, target.name, timeout, state)
        peer.return_lane(lane)
        if envelope.span is not None:
            envelope.span[ANSWERED] = self._clock()
        self._meter.answered(reply.nbytes())
        if envelope.extra is not None:
            self._values.delivered(envelope, peer.key)
        return reply

    def _begin(self, call: PendingCall) -> None:
        """Send a call on the peer's link; its reply completes it."""
        peer = call.peer
        frames, size = self._pack(call.envelope, peer)
        # Calls made inside of calls are not held back: two workers that call each other could wait for each other.
        is_held_back = running.scope is None and call.envelope.kind <= Kind.REMOTE_CALL and not peer.is_self
        try:
            is_one_of_many = self._pending.begin(call, size, is_held_back)
        except BaseException:
            self._values.take_back(call.envelope, peer.key)
            raise
        if call.envelope.span is not None:
            call.envelope.span[SENT] = self._clock()
        try:
            peer.send(frames, is_one_of_many)
        except BaseException:
            self._pending.finish(call.message_id)
            self._values.take_back(call.envelope, peer.key)
            raise
        if peer.lost is not None:  # lost between the two: nobody else may have seen this call
            self._fail([call] if self._pending.finish(call.message_id) else [], peer.lost)
        self._receiver.expect(call.deadline)

    def _attach_code(self, envelope: Envelope, target: Target, peer: Peer) -> list[Buffer]:
        """The same message again, with the code that the callee asked for."""
        if target.script is None:
            raise FrameError(f"worker {peer.info.name!r} asked for the code of {target.name}, which is not TorchScript")
        if envelope.extra is None or Extra.CODE not in envelope.extra:
            envelope.buffers = [*envelope.buffers, target.script.archive()]
            envelope.extra = {**(envelope.extra or {}), Extra.CODE: len(envelope.buffers) - 1}
        if envelope.span is not None:
            envelope.span[SENT] = self._clock()
        return self._pack(envelope, peer)[0]

    # ------------------------------------------------------------------------------------ ending

    def on_reply(self, envelope: Envelope) -> None:
        """A reply came. Called by the receiver, and by lanes for replies that are not theirs."""
        if envelope.kind == Kind.NEED_CODE:
            call = self._pending.get(envelope.message_id)
            if call is not None:
                self._resend(call)
            return
        call = self._pending.finish(envelope.message_id)
        if call is None:
            self._values.drop(envelope)  # it came too late; the references in it must still be let go
            call = self._pending.settle(envelope.message_id)
            if call is not None:
                self._values.delivered(call.envelope, call.peer.key)
            return
        if call.envelope.span is not None:
            call.envelope.span[ANSWERED] = self._clock()
        self._meter.answered(envelope.nbytes())
        self._values.delivered(call.envelope, call.peer.key)
        if call.profiled is not None:
            call.profiled.take(envelope)
        try:
            if envelope.kind == Kind.ANSWER:
                value = read_map(envelope)
            else:
                value = self._values.read_reply(envelope, call.peer.info)
        except BaseException as error:
            self._note_end(call, type(error).__name__)
            call.end(None, kept(error))
        else:
            if call.envelope.span is not None:
                call.envelope.span[LAST_THREAD] = threading.get_ident()
                call.envelope.span[ENDED] = self._clock()
                if self._tracer.sink is not None:
                    self._tracer.tell(call.envelope.span)
            call.end(value, None)

    def runs_user_code(self, envelope: Envelope) -> bool:
        """Whether `on_reply` would unpickle something, or call what a user has added to a future."""
        call = self._pending.get(envelope.message_id)
        if call is None:
            return envelope.kind != Kind.REPLY
        is_simple = envelope.codec == Codec.NONE or plainvalues.is_plain(envelope.body)
        if envelope.kind != Kind.REPLY or not is_simple or call.profiled is not None:
            return True
        if call.future is not None:
            return call.future.has_callbacks
        return call.envelope.kind not in _QUIET

    def cancel(self, message_id: int) -> bool:
        """End a call now, with `Cancelled`, and tell its callee; False if it has ended already."""
        call = self._pending.cancel(message_id)
        if call is None:
            return False
        try:
            call.peer.send(pack(self._about(Kind.CANCEL, message_id, call.envelope, call.peer)))
        except Unavailable:
            pass  # nobody is there who could go on with it
        self._note_end(call, Cancelled.__name__)
        call.end(None, Cancelled(f"the call of {call.target.name} on worker {call.peer.info.name!r} was cancelled"))
        return True

    def _resend(self, call: PendingCall) -> None:
        try:
            call.peer.send(self._attach_code(call.envelope, call.target, call.peer))
        except ZrpcError as error:
            if self._pending.finish(call.message_id):
                self._note_end(call, type(error).__name__)
                call.end(None, kept(error))

    def _note_end(self, call: PendingCall, error: str) -> None:
        """A call has failed: for the trace, before who waits for it is told."""
        if call.envelope.span is not None:
            self._tracer.end(call.envelope.span, error)

    def next_deadline(self) -> float | None:
        return self._pending.next_deadline()

    def on_timer(self, now: float) -> None:
        late = self._pending.expire(now)
        for call in late:
            self._note_end(call, CallTimeout.__name__)
        if late:
            ask_about(late, self.inspect)

    def lose(self, peer: Peer, why: str) -> None:
        """The peer's life is over: its calls fail now."""
        self._fail(self._pending.lose(peer), why)

    def _fail(self, calls: list[PendingCall], why: str) -> None:
        for call in calls:
            self._note_end(call, WorkerLost.__name__)
            call.end(None, WorkerLost(call.peer.info.name, why, f"calling {call.target.name}"))

    def pending(self) -> int:
        """Calls that have not ended."""
        return len(self._pending)

    def waits_for(self) -> set[WorkerKey]:
        """The workers whose replies are awaited, on links and on lanes."""
        return self._pending.workers() | self._peers.waited_for()

    def wait_idle(self, deadline: float | None) -> bool:
        """Wait until no call is pending; False at the deadline."""
        return self._pending.wait_idle(deadline)

    def close(self, why: str) -> None:
        """Fail what is pending, and refuse new calls."""
        self._fail(self._pending.close(), why)
