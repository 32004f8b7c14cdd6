"""The distributed autograd contexts of a simulated process, and what is recorded in them: numbers instead of tensors.

One rule: what the real book of contexts (`zrpc.autograd.book`) leaves to its machine is left to it here too. The graph
is kept beside it, so that the gradients of a pass can be compared with those of the algebra.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zrpc.protocol.backward import ROOTS, BackwardPass, Ends, Source, Terminal
from zrpc.protocol.contexts import ContextTable, Maker, SendCleanup
from zrpc.protocol.outbox import Peer
from zrpc.testing.simulation.truth import BrokenPromise

if TYPE_CHECKING:
    from zrpc.testing.simulation.worker import Process

CLEANUP_SECONDS = 5.0
"""A cleanup that is not acknowledged after so long has failed; it is sent again."""
LEAF = 0
"""The terminal of each worker's own leaf."""

PassId = tuple[int, int]
Combination = dict[int, int]
"""A value: factors by terminal."""


@dataclass(slots=True)
class Sent:
    """A message that left with a value."""

    to: Peer
    moment: int
    value: Combination
    group: int


@dataclass(slots=True)
class Received:
    """A message that came: who sent it, and the terminal that it is here."""

    sender: Peer
    moment: int
    number: int


@dataclass(slots=True)
class PassState:
    """One pass on one worker."""

    machine: BackwardPass
    sources: dict[int, Combination]
    arrived: dict[int, int] = field(default_factory=dict)
    sums: Counter[int] = field(default_factory=Counter)
    failure: str = ""


class Context:
    """What one worker has recorded in one context. Terminals are numbered from 0, the leaf; messages have their own."""

    def __init__(self, context_id: int) -> None:
        self.context_id = context_id
        self.sent: dict[int, Sent] = {}
        self.received: dict[int, Received] = {}
        self.terminal_of: dict[int, int] = {}
        self.passes: dict[PassId, PassState] = {}
        self.gradient = 0
        self._moments = 0

    def moment(self) -> int:
        """The next moment."""
        self._moments += 1
        return self._moments

    def receive(self, number: int, sender: Peer) -> int:
        """A message with a value came; the terminal that it is."""
        terminal = self.terminal_of.get(number)
        if terminal is None:
            terminal = self.terminal_of[number] = len(self.received) + 1
            self.received[terminal] = Received(sender, self.moment(), number)
        return terminal

    def begin_pass(self, pass_id: PassId, keep: bool, roots: Combination | None) -> PassState:
        """The state of a pass that comes here for the first time."""
        sources = {number: sent.value for number, sent in self.sent.items()}
        shapes = {number: Source(sent.moment, tuple(sent.value), sent.group) for number, sent in self.sent.items()}
        if roots is not None:
            sources[ROOTS] = roots
            shapes[ROOTS] = Source(self.moment(), tuple(roots), ROOTS)
        terminals = {LEAF: Terminal(None)}
        terminals |= {terminal: Terminal(received.moment) for terminal, received in self.received.items()}
        reached = {terminal for value in sources.values() for terminal in value}
        ends = Ends(shapes, {terminal: terminals[terminal] for terminal in sorted(reached)})
        state = self.passes[pass_id] = PassState(BackwardPass(ends, keep), sources)
        return state


class Recording:
    """The contexts of one process."""

    def __init__(self, process: Process, table: ContextTable) -> None:
        self.process = process
        self.table = table
        self.contexts: dict[int, Context] = {}
        self.own: list[int] = []
        """Contexts that the program made here and has not ended."""
        self._numbers = 0
        self._ended: set[int] = set()
        self._owed: list[tuple[Process, int, float]] = []

    # ---------------------------------------------------------------------------------------------- contexts

    def begin(self) -> int:
        """The program makes a context."""
        context_id = self.table.begin()
        self.contexts[context_id] = Context(context_id)
        self.own.append(context_id)
        return context_id

    def join(self, context_id: int) -> Context | None:
        """A call came in a context: None when it has ended here."""
        if not self.table.join(context_id, self._lives(), self.process.network.now):
            return None
        self.process.sleep()
        if context_id in self._ended:
            raise BrokenPromise(f"{self.process} takes part in context {context_id:#x} again, which has ended there")
        return self.contexts.setdefault(context_id, Context(context_id))

    def _lives(self) -> set[Maker]:
        return {(member.id, member.life & 0xFFFF) for member in self.process.session.members.values()}

    def record_sent(self, context_id: int, to: Peer) -> int:
        """A value leaves in a message: some combination of what is here. The message's number, 0 when there is none."""
        if not self.table.passed_on(context_id, to):
            return 0
        chance = self.process.network.random
        self._numbers += 1
        number = self.process.peer.incarnation << 20 | self._numbers
        context = self.contexts.get(context_id)
        if context is None:
            return number
        terminals = [LEAF, *context.received]
        value = {chance.choice(terminals): chance.randint(1, 3) for _ in range(chance.randint(1, 3))}
        group = number
        if context.sent and chance.random() < 0.5:  # it shares operations with another one, and so what these reach
            other = chance.choice(list(context.sent.values()))
            value = {**other.value, **value}
            group = other.group
        context.sent[number] = Sent(to, context.moment(), value, group)
        return number

    # ------------------------------------------------------------------------------------------------ ends

    def end(self, context_id: int) -> None:
        """The program ends a context that it made."""
        self.release(context_id)

    def release(self, context_id: int, told_by: Peer | None = None) -> None:
        """A context has ended, here or elsewhere."""
        process = self.process
        process.network.note(f"{process.peer} ends context {context_id:#x}, told by {told_by}")
        self.contexts.pop(context_id, None)
        self._ended.add(context_id)
        if context_id in self.own:  # others may end it too: those that have heard that this worker is lost
            self.own.remove(context_id)
        self._send(self.table.release(context_id, self._members(), process.network.now, told_by))

    def _members(self) -> list[Peer]:
        return [Peer(member.id, member.incarnation) for member in self.process.session.members.values()]

    def _send(self, effects: list[SendCleanup]) -> None:
        process = self.process
        for effect in effects:
            member = process.session.members_by_id.get(effect.to.worker_id)
            other = process.cluster.find(effect.to)
            if member is None or member.incarnation != effect.to.incarnation or other is None:
                continue
            key = ("cleanup", process.peer, effect)
            sent = process.network.now
            process.network.post(process, other, key, other.on_cleanup, process, effect.to, effect.context_id, sent)
        process.sleep()

    def on_cleanup(self, sender: Process, context_id: int, sent: float) -> None:
        """A context has ended, says whoever passed it on to this process."""
        self.release(context_id, sender.peer)
        self._owed.append((sender, context_id, sent))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Answer the cleanups that nothing is left of."""
        process, owed = self.process, self._owed
        self._owed = []
        for sender, context_id, sent in owed:
            if self.table.owes_acknowledgement(context_id, sender.peer):
                self._owed.append((sender, context_id, sent))
            else:
                effect = SendCleanup(process.peer, context_id)
                key = ("cleanup ack", sender.peer, effect)
                process.network.post(process, sender, key, sender.on_cleanup_ack, sender.peer, effect, sent)

    def on_ack(self, effect: SendCleanup, sent: float) -> None:
        """A cleanup is answered; nobody listens to an answer that is late."""
        if self.process.network.now - sent <= CLEANUP_SECONDS:
            self.table.cleanup_acknowledged(effect)
            self._acknowledge()

    def on_loss(self, peer: Peer, life: int) -> None:
        """A life of another worker is over, and with it the contexts that it made."""
        ended, effects = self.table.peer_lost(peer, life, self._members(), self.process.network.now)
        self._send(effects)
        for context_id in ended:
            self.release(context_id)
        self._acknowledge()

    def next_deadline(self) -> float | None:
        return self.table.next_deadline()

    def on_timer(self, now: float) -> None:
        """Time has passed."""
        self._send(self.table.timer_fired(now))
        self.table.postpone(self.process.broker_since)
        for context_id in self.table.strangers_due(self._lives(), now):
            self.release(context_id)

    def left(self) -> str:
        """What is kept of contexts; '' for nothing."""
        if len(self.table) or self.contexts or self._owed or self.table.next_deadline() is not None:
            active = [f"{context_id:#x}" for context_id in self.table.active()]
            return f"{self.table}, active {active}, {len(self._owed)} cleanups to acknowledge"
        return ""
