"""The agent: one worker's presence in the cluster. It puts the parts together and routes messages between them.

One rule: no logic of its own. What a message means is decided by the part that its kind belongs to.

    listener --> callee (calls) , references (control, fetches) , inspection
    links    --> caller (replies)
    broker   --> peers, caller, references (joins and losses)
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zrpc.clock import Clock, earliest, monotonic, time_left
from zrpc.errors import (
    FrameError,
    ProtocolFault,
    StaleIncarnation,
    Unavailable,
    VersionMismatch,
    ZrpcError,
)
from zrpc.ids import GloballyUniqueId, LocalIds, WorkerInfo
from zrpc.options import AgentOptions
from zrpc.protocol.calls import WorkerKey
from zrpc.protocol.effects import (
    BrokerBack,
    BrokerLost,
    Counts,
    Fenced,
    Held,
    MemberDraining,
    MemberGone,
    MemberUp,
    News,
    Released,
    StopRequested,
)
from zrpc.runtime.admission import Admission
from zrpc.runtime.askers import LocalAsker, RouteAsker
from zrpc.runtime.callee import Callee
from zrpc.runtime.caller import Caller
from zrpc.runtime.context import running
from zrpc.runtime.control import CONTROL
from zrpc.runtime.directory import ClusterClient, MemberDirectory
from zrpc.runtime.draining import Draining
from zrpc.runtime.eventloop import EventLoop
from zrpc.runtime.executor import Executor
from zrpc.runtime.futures import Future, complete
from zrpc.runtime.gathering import Gatherings
from zrpc.runtime.identity import Identity
from zrpc.runtime.inspection import Inspection, read_map, write_map
from zrpc.runtime.lanes import ASK_TIMEOUT, Lanes
from zrpc.runtime.peers import Address, LoopbackPeer, Peer, PeerBook
from zrpc.runtime.pending import PendingCalls
from zrpc.runtime.profiling import Completion, is_asked
from zrpc.runtime.receiver import Receiver, Source
from zrpc.runtime.references import References
from zrpc.runtime.remotes import Handle, Remotes
from zrpc.runtime.retrying import Retrying
from zrpc.runtime.scopes import trace_place
from zrpc.runtime.tasks import Asker
from zrpc.runtime.values import Values
from zrpc.runtime.vigil import Vigil
from zrpc.runtime.watch import MembershipWatch
from zrpc.serialization.codestore import CodeStore
from zrpc.serialization.pickler import Hooks
from zrpc.telemetry.collect import TraceDesk
from zrpc.telemetry.metrics import CallMeter
from zrpc.telemetry.otel import find_sink
from zrpc.telemetry.process import resident_bytes
from zrpc.telemetry.trace import Tracer
from zrpc.transport.base import Frames, Listener, Received, Transport
from zrpc.transport.poller import usable_cores
from zrpc.wire.envelope import Codec, Envelope, Extra, Kind, pack, unpack
from zrpc.wire.messages import Member

logger = logging.getLogger(__name__)

BROKER_PATIENCE = 30.0
"""Seconds that the common end of a static group waits for a broker that is away: a restarted one is back long before."""

_CALLS = (Kind.CALL, Kind.REMOTE_CALL)
_REPLIES = (Kind.REPLY, Kind.ERROR, Kind.NEED_CODE, Kind.ANSWER)


class Agent:
    """One worker of a cluster. Made by `zrpc.api`, which knows how to join."""

    def __init__(
        self,
        identity: Identity,
        options: AgentOptions,
        transport: Transport,
        listener: Listener,
        client: ClusterClient,
        make_hooks: Callable[[References], Hooks],
        *,
        is_static: bool = False,
        has_lanes: bool = False,
        clock: Clock = monotonic,
    ) -> None:
        self.identity = identity
        self.info: WorkerInfo = identity.info
        self.options = options
        self.is_static = is_static
        self.transport = transport
        self.listener = listener
        self.listener_source: Source | None = None
        self.stop_requested = threading.Event()
        self.stop_reason = ""
        self.fenced: str | None = None
        self.samples_gil = False
        self.refused: Counter[str] = Counter()
        self._clock = clock
        self._started = clock()
        self._released = threading.Event()
        self._ending = threading.Condition()
        self._broker_lost_at: float | None = None
        self._broker_back_at = float("-inf")
        self.gatherings = Gatherings(clock)
        self.extensions: dict[int, Callable[[Asker, Envelope, bool], None]] = {}
        """Who takes messages of further kinds: by the receiver's thread, or (True) by one of this worker that sent it."""
        self.at_loss: list[Callable[[Member, str], None]] = []
        """Called when a member is gone, with the reason."""
        self.at_end: list[Callable[[bool], None]] = []
        """Called when the agent has ended; the argument says whether gracefully."""
        self.broker_grace: float | None = None
        """Seconds that a lost broker has to come back, after which the common end is not waited for; None: for ever."""
        self._orphaned_at: float | None = None
        self._held: Held | None = None
        limits = options.limits()
        self._limits = limits
        self.meter = CallMeter()
        self.tracer = Tracer(clock=clock, find_place=trace_place)
        self.receiver = Receiver(clock, options.spin if usable_cores() > 1 else 0.0)
        self.executor = Executor(
            self.receiver.run, options.num_worker_threads, f"zrpc-{identity.info.name}", clock, self._prepare_thread
        )
        self.receiver.executor = self.executor
        self.client = client
        self.directory = MemberDirectory(client)
        self.peers = PeerBook(
            transport,
            self.directory,
            self.receiver,
            self.on_reply_frames,
            limits,
            self._runs_user_code,
            self._pending_calls,
        )
        me = Address(identity.info, identity.incarnation, identity.address)
        self.peers.add_self(LoopbackPeer(self.peers, me, self._deliver_to_self))
        self.lanes = Lanes(
            self.receiver, limits, self._on_message, self._ask_for_lane, has_lanes, options.shared_memory_bytes
        )
        if self.lanes.mark is not None:
            self.peers.seek_lane = self.lanes.seek
        ids = LocalIds(identity.info.id, identity.life)
        self.remotes = Remotes(self, clock)
        self.references = References(
            identity, ids, self.peers, self.receiver, self.remotes, clock, self.tracer, options.reference_stacks
        )
        self.references.is_looked_after = self.executor.ticks
        self.references.broker_since = self.broker_since
        self.executor.at_tick = self._on_tick
        self.values = Values(options.codecs, make_hooks(self.references), self.references)
        self.code = CodeStore(options.accept_code, options.code_cache_bytes, options.max_code_bytes)
        pending = PendingCalls(clock, options.max_pending_bytes, options.when_full == "fail")
        self.caller = Caller(
            identity,
            self.peers,
            self.receiver,
            self.values,
            self.meter,
            options.rpc_timeout,
            clock,
            self.tracer,
            pending,
        )
        self.retrying = Retrying(self.caller, self.receiver, self.members, identity.info.name, clock)
        self.loop = EventLoop(f"zrpc-{identity.info.name}-asyncio", self._prepare_thread)
        meter, tracer = self.meter, self.tracer
        admission = Admission(identity.info.name, options.allow, options.max_pending_calls)
        self.callee = Callee(
            admission,
            identity,
            self.values,
            self.code,
            self.references,
            self.executor,
            meter,
            limits,
            self.loop,
            clock,
            tracer,
        )
        self.inspection = Inspection(self, TraceDesk(self.tracer, find_sink), clock)
        self.leaving = Draining(identity, self.callee, self.caller, self.executor, client, clock)
        self.vigil = Vigil(transport, self.peers, self.caller, self.receiver, self._give_up, self.has_broker, clock)
        self.watch = MembershipWatch(identity.info.name, client.members, clock, self._prepare_thread)
        self.at_join: list[Callable[[Member], None]] = []
        """Called with each worker that joins, by the receiving thread."""

    def __repr__(self) -> str:
        return f"<Agent {self.info.name} id={self.info.id} incarnation={self.identity.incarnation}>"

    # ------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to receive."""
        client, clock = self.client, self._clock
        for member in client.members():
            self.references.learn(WorkerInfo(member.name, member.id), member.incarnation, member.life)
        self.listener_source = self.receiver.add(self.listener, self._on_request)
        self.receiver.add(client.link, lambda frames: self._on_news(client.on_frames(frames, clock())))
        self.receiver.add(client.watch, lambda event: self._on_news(client.on_link_event(event, clock())))
        for timer in (self.caller, self.references, self.retrying, self, self.vigil):
            self.receiver.add_timer(timer)
        self.executor.start()

    def _prepare_thread(self) -> None:
        running.agent = self

    def next_deadline(self) -> float | None:
        """When the broker's client wants to be called."""
        return earliest(self.client.next_deadline(), self._orphaned_at)

    def on_timer(self, now: float) -> None:
        self._on_news(self.client.on_timer(now))
        if self._orphaned_at is not None and now >= self._orphaned_at:
            self._orphaned_at = None
            self._released.set()  # whoever would have said so is gone
            self._look_again()

    def _on_tick(self) -> None:
        self.receiver.tick()
        self.references.look_after()

    def wait_released(self, deadline: float | None) -> bool:
        """Wait until all of the static group want to end and no call is under way; False at the deadline."""
        if self._released.is_set() or self.fenced is not None:
            return True
        self.client.begin_shutdown(self._counts)
        with self._ending:
            while not self._released.is_set() and self.fenced is None:
                lost_at = self._broker_lost_at
                end = earliest(deadline, None if lost_at is None else lost_at + BROKER_PATIENCE)
                left = time_left(end, self._clock())
                if left == 0.0:
                    return False
                self._ending.wait(left)
        return True

    def _look_again(self) -> None:
        """Something that `wait_released` waits for may have come."""
        with self._ending:
            self._ending.notify_all()

    def has_broker(self) -> bool:
        """Whether the broker knows this worker, as far as this worker knows."""
        return self._broker_lost_at is None

    def broker_since(self) -> float:
        """Since when the broker knows this worker; the time now while it does not."""
        return self._broker_back_at if self._broker_lost_at is None else self._clock()

    def missing_for_shutdown(self) -> tuple[str, ...]:
        """Members that have not asked to end yet, as far as the broker has said."""
        return () if self._held is None else self._held.missing

    def drain(self, deadline: float | None, leave_timeout: float, let_go: Callable[[], object] | None = None) -> None:
        """Take no new work, and wait for what was begun and for the calls that this worker has made; then let go of its
        references (by `let_go`) and tell their owners. Calls of others are waited for until `deadline` or
        `options.drain_timeout`."""
        self.leaving.begin("it has shut down")
        self.leaving.wait(earliest(deadline, self._clock() + self.options.drain_timeout))
        self.caller.wait_idle(deadline)
        (let_go or self.references.drop_all)()
        self.references.wait_drained(earliest(deadline, self._clock() + leave_timeout))

    def close(self, why: str) -> None:
        """Leave the cluster and end everything; pending calls fail with `why`."""
        self.client.leave(why)
        self._end(why)

    def abandon(self) -> None:
        """End without a word to anybody, as a killed process does. For tests."""
        self._end("it was killed")

    def _end(self, why: str) -> None:
        patience = 0.2 if self.leaving.is_hurried else 5.0
        self.executor.stop(0.0)  # says that it stops; the threads end below
        self.watch.close()
        self.loop.stop(min(1.0, patience))  # its coroutines cancel their calls, while they can
        self.receiver.wake()
        self.references.close()
        self.vigil.close()
        self.retrying.close(why)
        self.caller.close(why)
        self.peers.close()
        self.lanes.close()
        if not (self.executor.stop(patience) and self.loop.stop(patience)):
            logger.warning("worker %s ends while user functions still run", self.info.name)
        self.lanes.close()  # again: the receiver may have been about to offer some
        self.client.close()
        self.transport.close()
        self.receiver.close()

    # ------------------------------------------------------------------------------------ references

    def remote(self, to: str | int | WorkerInfo, func: Any, args: Any, kwargs: Any, timeout: float) -> Handle:
        """Have a worker make a value; returns the handle of a reference to it."""
        return self.remotes.remote(to, func, args, kwargs, timeout)

    # ------------------------------------------------------------------------------------ messages

    def _on_request(self, received: Received) -> None:
        """A message at the listener."""
        self._on_message(RouteAsker(self, received.route), received.frames)

    def _on_message(self, asker: Asker, frames: Any) -> None:
        """A message that somebody sent here: a call, or a message of the reference protocol."""
        try:
            envelope = unpack(frames, self._limits)
        except ZrpcError as error:
            self._refuse("other protocol version" if isinstance(error, VersionMismatch) else "malformed", error)
            return
        meant_for = envelope.receiver_incarnation
        if meant_for and meant_for != self.identity.incarnation:
            self._refuse("stale incarnation", None)
            if envelope.kind in _CALLS or envelope.kind == Kind.RREF_FETCH:
                stale = StaleIncarnation(
                    f"worker {self.info.name!r} has restarted: the message was meant for an earlier life of it"
                )
                self.callee.answer_error(asker, envelope, stale, 0)
            return
        try:
            self._route(asker, envelope, False)
        except ProtocolFault as error:
            self._refuse("malformed", error)

    def _route(self, asker: Asker, envelope: Envelope, is_local: bool) -> None:
        kind = envelope.kind
        if kind in _CALLS:
            if self.fenced is not None and not is_local:
                self._refuse("call to a fenced life", None)  # others were told that it is over: it must not go on
                why = StaleIncarnation(f"this life of worker {self.info.name!r} is over: {self.fenced}")
                self.callee.answer_error(asker, envelope, why, 0)
                return
            self.callee.on_call(asker, envelope, is_local)
        elif kind == Kind.RREF_FETCH:
            self._on_fetch(asker, envelope)
        elif kind == Kind.CANCEL:
            self.callee.on_cancel(envelope)
        elif kind in CONTROL:
            try:
                self.references.on_control(envelope)
            except ProtocolFault as error:
                self._refuse("against the reference protocol", error)
        elif kind == Kind.INSPECT:
            self._on_inspect(asker, envelope)
        elif kind in self.extensions:
            self.extensions[kind](asker, envelope, is_local)
        else:
            self._refuse(f"kind {kind}", None)

    def _on_fetch(self, asker: Asker, envelope: Envelope) -> None:
        if envelope.rref is None:
            raise FrameError("a fetch without an RRef id")
        arrived = self._clock()
        deadline = arrived + envelope.time_left_us * 1e-6 if envelope.time_left_us else None
        is_touch = bool(envelope.extra and envelope.extra.get(Extra.TOUCH))
        recorder = self.values.join(envelope)

        def answer(value: Any, error: BaseException | None, codec: Codec) -> None:
            if envelope.trace is not None:
                self.tracer.serve(envelope, "fetch", arrived, self._clock())
            if is_touch and is_asked(envelope):
                self.callee.recordings.give(envelope)
            if error is not None:
                self.callee.answer_error(asker, envelope, error, 0)
            elif is_touch:
                self.callee.answer_value(asker, envelope, None, Codec.SCRIPT, 0, deadline)
            else:
                self.callee.answer_value(asker, envelope, value, codec, 0, deadline, recorder)

        self.references.on_fetch(GloballyUniqueId(*envelope.rref[:2]), answer, deadline)

    def _on_inspect(self, asker: Asker, envelope: Envelope) -> None:
        def reply(data: dict[str, Any]) -> None:
            identity = self.identity
            answer = Envelope(
                Kind.ANSWER, envelope.message_id, identity.info.id, identity.incarnation, envelope.sender_incarnation
            )
            answer.trace = envelope.trace
            write_map(answer, data)
            try:
                asker.answer(pack(answer, self._limits))
            except Unavailable:
                pass  # whoever asked has gone

        question = read_map(envelope)
        what = question.get("what")
        if what == "lane":
            reply(self.lanes.offer(question, (envelope.sender, envelope.sender_incarnation)))
        elif what in ("calls", "tasks"):
            reply(self.callee.describe(question, (envelope.sender, envelope.sender_incarnation)))
        else:
            self.inspection.answer(question, reply)

    def _ask_for_lane(self, peer: Peer, question: Mapping[str, Any], done: Completion) -> None:
        self.caller.inspect(peer, question, ASK_TIMEOUT, done, inherits=False)

    def on_reply_frames(self, frames: Any) -> None:
        """A message on a link of ours: a reply."""
        try:
            envelope = frames if isinstance(frames, Envelope) else unpack(frames, self._limits)
        except ZrpcError as error:
            self._refuse("malformed", error)
            return
        if envelope.kind in _REPLIES:
            self.caller.on_reply(envelope)
        else:
            self._refuse(f"kind {envelope.kind}", None)

    def _runs_user_code(self, envelope: Envelope) -> bool:
        """Whether handling a message on a link of ours runs code of a user's, which may take long."""
        return self.caller.runs_user_code(envelope)

    def _pending_calls(self) -> int:
        return self.caller.pending()

    def _deliver_to_self(self, frames: Frames) -> None:
        envelope = unpack(frames, self._limits)
        self._route(LocalAsker(self), envelope, True)

    def _refuse(self, why: str, error: BaseException | None) -> None:
        """Count a message that is not answered, and say so: the first time, then each time the count doubles."""
        self.refused[why] += 1
        count = self.refused[why]
        if count & (count - 1) == 0:
            logger.warning("worker %s refused %d message(s): %s %s", self.info.name, count, why, error or "")

    # ------------------------------------------------------------------------------------ the cluster

    def _on_news(self, news: Iterable[News]) -> None:
        for item in news:
            self._take_news(item)

    def _take_news(self, news: News) -> None:
        if isinstance(news, MemberUp):
            member = news.member
            self.references.learn(WorkerInfo(member.name, member.id), member.incarnation, member.life)
            self.watch.note(news)
            for told in list(self.at_join):
                told(member)
        elif isinstance(news, MemberGone):
            self._on_gone(news)
            self.watch.note(news)
        elif isinstance(news, MemberDraining):
            self.watch.note(news)
        elif isinstance(news, StopRequested):
            self.request_stop(news.why or "it was asked to stop")
        elif isinstance(news, Fenced):
            self.fenced = news.why
            logger.error("worker %s was fenced: %s", self.info.name, news.why)
            self.request_stop(f"it was fenced: {news.why}")
            self._look_again()
        elif isinstance(news, Held):
            self._held = news
        elif isinstance(news, Released):
            self._released.set()
            self._look_again()
        elif isinstance(news, BrokerLost):
            logger.warning("worker %s lost the broker (%s); calls between workers go on", self.info.name, news.why)
            self._broker_lost_at = self._clock()
            self._look_again()
            if self.broker_grace is not None:
                self._orphaned_at = self._clock() + self.broker_grace
        elif isinstance(news, BrokerBack):
            self._orphaned_at = self._broker_lost_at = None
            self._broker_back_at = self._clock()
            logger.warning("worker %s has the broker back", self.info.name)

    def _on_gone(self, news: MemberGone) -> None:
        member = news.member
        key = (member.id, member.incarnation)
        self.gatherings.lose(member.name, news.why)
        self.tracer.lose(member.id)
        self.peers.note_gone(WorkerInfo(member.name, member.id), member.incarnation, news.why)
        peer = self.peers.lose(key, news.why)
        if peer is not None:
            self.caller.lose(peer, news.why)
        self.references.lose(key, member.life, news.why)
        for told in self.at_loss:
            told(member, news.why)
        self.lanes.forget(key)

    def _give_up(self, key: WorkerKey, why: str) -> None:
        """A peer cannot answer any more, as far as this worker can tell: calls that wait for it fail. It stays a member."""
        peer = self.peers.lose(key, why)
        if peer is not None:
            self.caller.lose(peer, why)

    def request_stop(self, why: str) -> None:
        """Make `zrpc.serve` return."""
        self.stop_reason = self.stop_reason or why
        self.stop_requested.set()

    def _counts(self) -> Counts:
        counts = self.meter.counts()
        pool = self.executor.statistics()
        active = self.caller.pending() + self.callee.under_way() + pool.running + pool.blocked + pool.queued
        return Counts(counts.calls_made, counts.calls_served + counts.calls_dropped, active)

    # ------------------------------------------------------------------------------------ about itself

    def beat_statistics(self) -> dict[str, int | float]:
        """What the broker is told with each beat."""
        counts = self.meter.counts()
        pool = self.executor.statistics()
        return {
            "calls_served": counts.calls_served,
            "calls_made": counts.calls_made,
            "calls_failed": counts.calls_failed,
            "bytes_in": counts.bytes_in,
            "bytes_out": counts.bytes_out,
            "busy_seconds": pool.busy_seconds,
            "active": pool.running,
            "queued": pool.queued,
            "memory_bytes": resident_bytes(),
            "uptime_seconds": self._clock() - self._started,
        }

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges of this worker, plain values."""
        refs = self.references.statistics()
        pool = self.executor.statistics()
        return {
            **self.beat_statistics(),
            "name": self.info.name,
            "id": self.info.id,
            "pid": os.getpid(),
            "threads": pool.threads,
            "turns_taken": pool.turns_taken,
            "pending_calls": self.caller.pending(),
            "owner_rrefs": refs.num_owner_rrefs,
            "user_rrefs": refs.num_users,
            "forks": refs.num_forks,
            "refused": {**self.refused, **self.transport.refusals()},
        }

    def functions(self) -> list[str]:
        """Names of the TorchScript functions that can be called here by name."""
        return self.code.names()

    def members(self) -> list[Member]:
        """Everybody who is up, this worker included."""
        return self.client.members()

    def ask(self, worker: str | int | WorkerInfo, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Ask a worker about itself, and wait for the answer."""
        future: Future[Any] = Future()
        peer = self.peers.find(worker)
        self.caller.inspect(peer, question, timeout, lambda value, error: complete(future, value, error))
        answer: dict[str, Any] = future.wait()
        return answer

    def ping(self, worker_id: int, timeout: float, done: Callable[[BaseException | None], None]) -> None:
        """Ask another worker for a sign of life."""
        self.caller.inspect(self.peers.find(worker_id), {"what": "ping"}, timeout, lambda _value, error: done(error))
