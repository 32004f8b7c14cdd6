"""A process of a simulated cluster: the machines of one worker, joined as the agent joins them, and a program of chance.

One rule: what is decided by the real machines is left to them. This is the driver that `zrpc.runtime` is for real: it
performs their effects on the simulated network, and tells the truth what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from zrpc.clock import earliest
from zrpc.ids import ForkId, LocalIds, RRefId
from zrpc.protocol.allegiance import Allegiance
from zrpc.protocol.calls import CallTable
from zrpc.protocol.contexts import ContextTable, SendCleanup
from zrpc.protocol.effects import (
    Announce,
    BrokerBack,
    BrokerLost,
    CloseLine,
    Departure,
    Dispatch,
    Fenced,
    Joined,
    JoinFailed,
    LineArrival,
    LineChange,
    MemberGone,
    MemberUp,
    News,
    OpenLine,
    Start,
    Tick,
)
from zrpc.protocol.membership import LOSS_GRACE
from zrpc.protocol.rrefs import Fork, Peer, RRefTable, SendAck, SendControl
from zrpc.protocol.served import Served
from zrpc.protocol.session import Session
from zrpc.testing.simulation.lines import Speaker
from zrpc.testing.simulation.passes import Passing
from zrpc.testing.simulation.recording import Recording
from zrpc.testing.simulation.referring import Referring
from zrpc.testing.simulation.repeating import Repeated
from zrpc.testing.simulation.truth import BrokenPromise
from zrpc.wire.messages import Hello, Message

if TYPE_CHECKING:
    from zrpc.testing.simulation.cluster import Simulation

ENDING = 0.05
"""Seconds that a process takes to end when it has been told to."""


class Call:
    """A call that a process has made."""

    __slots__ = ("deadline", "forks", "message_id", "on_end", "peer", "recorded", "reply_number", "uid", "value")

    def __init__(
        self,
        uid: int,
        message_id: int,
        peer: Peer,
        deadline: float | None,
        forks: list[Fork],
        on_end: Callable[[str], None] | None,
    ) -> None:
        self.uid = uid
        self.message_id = message_id
        self.peer = peer
        self.deadline = deadline
        self.forks = forks
        self.on_end = on_end
        self.recorded: tuple[int, int] | None = None
        """The context that it is made in, and the number of what it carries."""
        self.reply_number = 0
        self.value: tuple[int, frozenset[int], str] = 0, frozenset(), ""
        """What a message of a backward pass is answered with."""

    def __repr__(self) -> str:
        return f"<Call {self.uid} to {self.peer}>"


class Process(Speaker):
    """One life of a worker, from its HELLO to its end."""

    def __init__(self, cluster: Simulation, name: str, number: int) -> None:
        super().__init__()
        self.cluster = cluster
        self.network = cluster.network
        self.truth = cluster.truth
        self.name = name
        self.number = number
        self.session = Session(Hello(name=name, nonce=number, address=f"memory://{name}-{number}"))
        self.allegiance = Allegiance(self.session, cluster.brokers.addresses)
        self.has_broker = True
        self.broker_back_at = 0.0
        self.is_leaving = False
        self.is_spotless = True
        """Whether nothing has happened to it: it was never stopped or cut off, no connection of it broke, and nobody
        else wanted its name."""
        self.peer = Peer(-1, 0)
        self.lost: set[Peer] = set()
        self.calls: CallTable[Call] = CallTable()
        self.served = Served()
        self.references: Referring | None = None
        self.recording: Recording | None = None
        self.passing = Passing(self)
        self.passes: set[int] = set()
        """Backward passes that began here."""
        self.repeated: set[Repeated] = set()
        self.handles: Counter[tuple[RRefId, ForkId | None]] = Counter()
        self.dead_users: set[ForkId] = set()
        self.values: set[RRefId] = set()
        self.created: set[RRefId] = set()
        self.running: list[RRefId] = []
        self.thawed_at = 0.0
        self._next_message = 0
        self._wake_at: float | None = None
        for address in cluster.brokers.addresses:
            cluster.brokers.open(self, address)
        self.feed(Start())

    def __repr__(self) -> str:
        return f"<{self.name} {self.peer} {self.session.state}>"

    @property
    def is_serving(self) -> bool:
        """Whether it is a member that runs."""
        return not self.is_over and not self.is_frozen and self.references is not None and self.session.state == "up"

    @property
    def broker_since(self) -> float:
        """Since when there is a broker; now, while there is none."""
        return self.broker_back_at if self.has_broker else self.network.now

    # ----------------------------------------------------------------------------------------- membership

    def on_change(self, address: str, what: str) -> None:
        """A connection to a broker has changed."""
        self.feed(LineChange(address, what))

    def on_message(self, address: str, message: Message, incarnation: int) -> None:
        """A message of a broker came."""
        if incarnation in (0, self.session.incarnation):
            self.feed(LineArrival(address, message))

    def feed(self, event: object) -> None:
        """Give the session, and what chooses its broker, an event."""
        for effect in self.allegiance.handle(event, self.network.now):
            if isinstance(effect, Dispatch):
                for address in effect.addresses:
                    if address in self.lines:
                        self.lines[address].send(effect.message, self.session.id, self.session.incarnation)
            elif isinstance(effect, OpenLine):
                self.cluster.brokers.open(self, effect.address)
            elif isinstance(effect, CloseLine):
                self.close_line(effect.address)
            elif isinstance(effect, Announce):
                self._on_news(effect.news)
        self.sleep()

    def _on_news(self, news: News) -> None:
        if isinstance(news, Joined):
            self.peer = Peer(self.session.id, self.session.incarnation)
            self.network.note(f"{self} joins")
            self.truth.begin_life(self)
            ids = LocalIds(self.session.id, self.session.life)
            self.references = Referring(self, RRefTable(self.session.id, ids, self.session.incarnation))
            self.recording = Recording(self, ContextTable(self.peer, self.session.life))
        elif isinstance(news, MemberUp):
            assert self.references is not None
            member = news.member
            self.references.strangers.announce(Peer(member.id, member.incarnation), member.life)
        elif isinstance(news, MemberGone):
            member = news.member
            self.on_loss(Peer(member.id, member.incarnation), member.life, news.why)
        elif isinstance(news, BrokerLost):
            self.has_broker = False
        elif isinstance(news, BrokerBack):
            self.has_broker, self.broker_back_at = True, self.network.now
        elif isinstance(news, (Fenced, JoinFailed)):
            self.network.note(f"{self} must end: {news}")
            self.cluster.disturbed = True
            schedule = self.network.schedule
            is_excused = schedule.unruly_broker or schedule.latency >= LOSS_GRACE or self.cluster.brokers.cut_alone
            if isinstance(news, Fenced) and self.is_spotless and not is_excused:
                raise BrokenPromise(f"{self} is fenced, and nothing has happened to it: {news}")
            self.later(ENDING, self.end, "closed")

    def on_loss(self, peer: Peer, life: int, why: str) -> None:
        """A life of another worker is over, as far as is known here."""
        self.lost.add(peer)
        self.cluster.has_losses = True
        for call in self.calls.lose(peer):
            self.finish(call, "lost")
        if self.references is not None:
            self.references.lose(peer, life, why)
        if self.recording is not None:
            self.recording.on_loss(peer, life)

    # ----------------------------------------------------------------------------------------------- calls

    def begin(
        self,
        to: Process,
        timeout: float | None,
        what: Callable[..., None],
        *args: object,
        forks: list[Fork] | None = None,
        on_end: Callable[[str], None] | None = None,
        context_id: int | None = None,
    ) -> Call:
        """Make a call, maybe in a context; `what` is the method of `to` that takes it."""
        self._next_message += 1
        now = self.network.now
        deadline = None if timeout is None else now + timeout
        call = Call(self.truth.begin_call(), self._next_message, to.peer, deadline, forks or [], on_end)
        if context_id is not None and self.recording is not None:
            number = self.recording.record_sent(context_id, to.peer)
            call.recorded = (context_id, number) if number else None
        self.calls.begin(call.message_id, call.peer, call, deadline)
        self.network.post(self, to, None, what, self, to.peer, call, timeout, *args)
        self.sleep()
        return call

    def finish(self, call: Call, how: str) -> None:
        """A call has ended. It has been taken out of the table."""
        # A process that was stopped hears of its deadlines when it goes on.
        deadline = None if call.deadline is None else max(call.deadline, self.thawed_at)
        self.truth.end_call(call.uid, how, self.network.now, deadline)
        if how in ("result", "timeout") and call.peer in self.lost:
            raise BrokenPromise(f"call {call.uid} ended by {how}, though {call.peer} was lost before")
        if call.on_end is not None:
            call.on_end(how)

    def takes(self, sender: Process, to: Peer, call: Call) -> bool:
        """Whether a call that came is to be run: it is for this life, which is not over, and came for the first time."""
        if self.references is None:
            return False
        if to != self.peer or self.session.state == "fenced":
            self.answer(sender, call, "refused", [])
            return False
        return self.served.accept(sender.peer, call.message_id)

    def on_call(self, sender: Process, to: Peer, call: Call, timeout: float | None, has_code: bool = False) -> None:
        """A call came. Some functions are not here: their code is asked for."""
        if call.uid % 5 == 0 and not has_code and to == self.peer:
            self.network.post(self, sender, None, sender.on_need_code, self, call)
            return
        if self.takes(sender, to, call):
            deadline = None if timeout is None else self.network.now + timeout
            self.later(self.network.random.random() * 0.1, self.start, sender, call, deadline)

    def on_remote_call(self, sender: Process, to: Peer, call: Call, timeout: float | None, fork: Fork) -> None:
        """A call came that makes a value here."""
        if self.takes(sender, to, call):
            assert self.references is not None
            self.references.on_remote_call(sender, call, fork)

    def on_fetch(self, sender: Process, to: Peer, call: Call, timeout: float | None, rref_id: RRefId) -> None:
        """Somebody asks for a value of this process."""
        if self.references is not None and to == self.peer:
            self.references.on_fetch(sender, call, rref_id)

    def on_backward(
        self, sender: Process, to: Peer, call: Call, timeout: float | None, context_id: int, message: tuple[object, ...]
    ) -> None:
        """A message of a backward pass came."""
        if self.takes(sender, to, call):
            self.passing.take(sender, call, context_id, message)

    def on_cleanup(self, sender: Process, to: Peer, context_id: int, sent: float) -> None:
        """A context has ended."""
        if self.recording is not None and to == self.peer:
            self.recording.on_cleanup(sender, context_id, sent)

    def on_cleanup_ack(self, to: Peer, effect: SendCleanup, sent: float) -> None:
        """A context has ended elsewhere."""
        if self.recording is not None and to == self.peer:
            self.recording.on_ack(effect, sent)

    def on_control(self, sender: Peer, effect: SendControl) -> None:
        """A control message of the reference protocol came."""
        if self.references is not None and effect.to == self.peer:
            self.references.on_control(sender, effect)

    def on_ack(self, sender: Peer, effect: SendAck) -> None:
        """An acknowledgement of the reference protocol came."""
        if self.references is not None and effect.to == self.peer:
            self.references.on_ack(sender, effect)

    def on_need_code(self, callee: Process, call: Call) -> None:
        """The callee does not have the function: send the call again, with the code."""
        if self.calls.get(call.message_id) is not None:
            left = None if call.deadline is None else max(1e-6, call.deadline - self.network.now)
            self.network.post(self, callee, None, callee.on_call, self, call.peer, call, left, True)

    def later(self, delay: float, what: Callable[..., None], *args: object) -> None:
        """Do something here after a while; not while the process is frozen."""
        self.network.at(delay, self.network.arrive, self, self, what, args)

    def start(self, sender: Process, call: Call, deadline: float | None) -> None:
        """A thread has come to a call."""
        assert self.references is not None
        if deadline is not None and self.network.now >= deadline:
            self.references.refuse(call.forks)
        elif self.session.state == "fenced":
            self.answer(sender, call, "refused", [])
        elif not self.references.take(call.forks):
            self.answer(sender, call, "error", [])
        else:
            self.run(sender, call, deadline)

    def run(self, sender: Process, call: Call, deadline: float | None) -> None:
        """Run the function of a call; it may make a call itself, in the same context."""
        self.truth.run_function(call.uid, self)
        context_id = None
        if call.recorded is not None and self.recording is not None:
            context = self.recording.join(call.recorded[0])
            if context is not None:
                context_id = context.context_id
                context.receive(call.recorded[1], sender.peer)
        if self.network.chance(0.2 if context_id is None else 0.5):
            self.later(self.network.random.random() * 0.1, self.call_inside, deadline, context_id)
        slow = self.network.chance(0.1)
        self.later(self.network.random.random() * (3.0 if slow else 0.2), self.end_function, sender, call, deadline)

    def call_inside(self, deadline: float | None, context_id: int | None) -> None:
        """The function makes a call."""
        self.cluster.make_call(self, None if deadline is None else deadline - self.network.now, context_id)

    def end_function(self, sender: Process, call: Call, deadline: float | None) -> None:
        """The function of a call has returned, or raised; its result may carry references."""
        assert self.references is not None
        forks = self.references.fork_some(sender.peer, deadline) if self.network.chance(0.3) else []
        if call.recorded is not None and self.recording is not None:
            call.reply_number = self.recording.record_sent(call.recorded[0], sender.peer)
        self.answer(sender, call, "error" if not forks and self.network.chance(0.1) else "result", forks)

    def answer(self, sender: Process, call: Call, how: str, forks: list[Fork]) -> None:
        """Send a reply."""
        self.network.post(self, sender, None, sender.on_reply, self.peer, call, how, forks)

    def on_reply(self, callee: Peer, call: Call, how: str, forks: list[Fork]) -> None:
        """A reply came."""
        assert self.references is not None
        found = self.calls.finish(call.message_id)
        if found is None:
            self.references.refuse(forks)
        else:
            self.references.delivered(found.forks, found.peer)
            if how == "result" and call.reply_number and call.recorded is not None and self.recording is not None:
                context = self.recording.contexts.get(call.recorded[0])
                if context is not None:
                    context.receive(call.reply_number, callee)
            self.references.take(forks)
            self.finish(found, how)
        self.sleep()

    # ------------------------------------------------------------------------------------------------ time

    def sleep(self) -> None:
        """Be woken at the next deadline of a machine."""
        if self.is_over:
            return
        due = earliest(self.allegiance.next_deadline(), self.calls.next_deadline())
        if self.references is not None:
            due = earliest(due, self.references.next_deadline())
        if self.recording is not None:
            due = earliest(due, self.recording.next_deadline())
        if due is not None and (self._wake_at is None or due < self._wake_at):
            self._wake_at = due
            self.network.at(max(0.0, due - self.network.now), self.network.arrive, self, self, self._wake, (due,))

    def _wake(self, due: float) -> None:
        if self._wake_at == due:
            self._wake_at = None
        now = self.network.now
        for call in self.calls.expire(now):
            self.finish(call, "timeout")
        if self.references is not None:
            self.references.on_timer(now)
        if self.recording is not None:
            self.recording.on_timer(now)
        deadline = self.allegiance.next_deadline()
        if deadline is not None and deadline <= now:
            self.feed(Tick())
        self.sleep()

    # ----------------------------------------------------------------------------------------------- its end

    def kill(self) -> None:
        """It ends without a word."""
        self.network.note(f"{self} dies")
        self._end("caller died")

    def end(self, how: str) -> None:
        """It ends in good order; calls that it waits for fail here."""
        if not self.is_over:
            self._end(how)

    def leave(self) -> None:
        """It takes leave: lets go of all references, and says so when their owners know, or after a while."""
        self.is_leaving = True
        if self.references is not None:
            self.references.drop_all()
        self.later(0.1, self._leave_when_drained, self.network.now + 5.0)

    def _leave_when_drained(self, deadline: float) -> None:
        if self.is_over:
            return
        is_drained = self.references is None or self.references.table.is_drained()
        if self.network.now < deadline and not is_drained:
            self.later(0.2, self._leave_when_drained, deadline)
            return
        self.network.note(f"{self} leaves")
        self.feed(Departure())
        self.later(ENDING, self.end, "closed")

    def _end(self, how: str) -> None:
        self.is_over = True
        for call in self.calls.drain():
            self.finish(call, how)
        for repeated in list(self.repeated):
            repeated.end(how)
        self.handles.clear()
        self.inbox.clear()
        self.cluster.on_exit(self)
