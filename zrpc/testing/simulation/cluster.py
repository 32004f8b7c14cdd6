"""A whole simulated cluster: a history of chance, then peace, and what must hold in the end.

One rule: a history ends with a check of everything. Faults stop, calls end, the membership comes to agree; then the program
lets go of all references, and nothing may be left of them.
"""

from __future__ import annotations

from collections.abc import Callable

from zrpc.protocol.rrefs import Peer
from zrpc.testing.simulation.broker import NOTICE, Broker
from zrpc.testing.simulation.network import Network
from zrpc.testing.simulation.passes import NOT_ANNOUNCED
from zrpc.testing.simulation.recording import LEAF
from zrpc.testing.simulation.repeating import Repeated
from zrpc.testing.simulation.schedule import Schedule
from zrpc.testing.simulation.truth import BrokenPromise, Truth
from zrpc.testing.simulation.worker import Process

MAX_STEPS = 2_000_000
SETTLING = 200.0
"""Simulated seconds in which everything must come to rest: the broker's patience, retries and graces are below 60."""


class Simulation:
    """One history; `run` raises `BrokenPromise` where a promise is broken."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.network = Network(schedule)
        self.truth = Truth()
        self.broker = Broker(self.network)
        self.processes: dict[int, Process] = {}
        self.by_peer: dict[Peer, Process] = {}
        self.disturbed = False
        self.has_losses = False
        self._numbers = 0
        self._is_over = False
        for index in range(schedule.workers):
            self.start(f"w{index}")

    # ------------------------------------------------------------------------------------------- who is there

    def start(self, name: str) -> None:
        """Start a process that wants this name."""
        self._numbers += 1
        process = Process(self, name, self._numbers)
        self.processes[process.number] = process
        self.broker.connect(process)

    def on_exit(self, process: Process) -> None:
        """A process has ended: its connections close."""
        del self.processes[process.number]
        self.broker.break_connection(process)

    def living(self) -> list[Process]:
        """Processes that have not ended and not been told to, frozen ones too."""
        return [process for process in self.processes.values() if process.session.state in ("joining", "up")]

    def serving(self) -> list[Process]:
        """Members that run."""
        return [process for process in self.processes.values() if process.is_serving]

    def find(self, peer: Peer) -> Process | None:
        """The process of a life, while it is there."""
        for process in self.processes.values():
            if process.peer == peer:
                return process
        return None

    def is_excused(self) -> bool:
        """Whether the history had deaths or long cuts: a child of a lost parent may be late for the owner's grace."""
        return self.disturbed

    # --------------------------------------------------------------------------------------------- what happens

    def act(self) -> None:
        """Something happens, or some worker does something."""
        schedule, chance = self.schedule, self.network.random
        if self.network.chance(0.08):
            events: list[Callable[[Process], None]] = [self.reset]
            events += [self.kill, self.kill, self.leave, self.join] if schedule.deaths else [self.join]
            events += [self.freeze] if schedule.freezes else []
            events += [self.cut, self.cut_two] if schedule.cuts else []
            events += [self.restart_broker] if schedule.broker_restarts else []
            living = self.living()
            if living:
                chance.choice(events)(chance.choice(living))
            return
        workers = self.serving()
        if workers:
            process = chance.choice(workers)
            kinds = [self.make_call, self.make_call, self.make_value, self.make_value, self.fetch, self.let_go]
            kinds += [self.begin_context, self.use_context, self.use_context, self.end_context, self.repeat]
            chance.choice(kinds)(process)

    def timeout(self) -> float:
        """A timeout for a call."""
        return self.network.random.choice((0.2, 1.0, 5.0))

    def pick_peer(self, process: Process) -> Process | None:
        """Somebody whom the process knows as a member, by name; None when there is nobody else."""
        names = [name for name in process.session.members if name != process.name]
        if not names:
            return None
        return self.peer_named(process, self.network.random.choice(names))

    def peer_named(self, process: Process, name: str) -> Process | None:
        """Whom the process knows by this name."""
        member = process.session.members[name]
        return self.by_peer_of(Peer(member.id, member.incarnation))

    def by_peer_of(self, peer: Peer) -> Process | None:
        """The process of a life, also of one that has ended: messages to it are lost."""
        found = self.find(peer)
        if found is not None:
            self.by_peer[peer] = found
        return self.by_peer.get(peer)

    def make_call(self, process: Process, bound: float | None = None, context_id: int | None = None) -> None:
        """A call with, maybe, references in it, maybe in a context."""
        to = self.pick_peer(process)
        if to is None or process.references is None:
            return
        timeout = self.timeout() if bound is None else min(bound, self.timeout())
        if timeout <= 0:
            return
        deadline = self.network.now + timeout
        forks = process.references.fork_some(to.peer, deadline) if self.network.chance(0.5) else []
        process.begin(to, timeout, to.on_call, forks=forks, context_id=context_id)

    def make_value(self, process: Process) -> None:
        """A value of the process's own, or one that another worker makes."""
        assert process.references is not None
        to = self.pick_peer(process)
        if to is None or self.network.chance(0.2):
            process.references.create_local()
        else:
            process.references.remote(to, self.timeout())

    def fetch(self, process: Process) -> None:
        """Fetch the value of a reference, or copy the handle."""
        assert process.references is not None
        keys = process.references.usable()
        if keys:
            key = self.network.random.choice(keys)
            if self.network.chance(0.3):
                process.references.hold(key)
            else:
                process.references.fetch(key, self.timeout())

    def repeat(self, process: Process) -> None:
        """A call that may be repeated."""
        Repeated(process, self.timeout())

    def begin_context(self, process: Process) -> None:
        """A distributed autograd context, with some calls in it."""
        assert process.recording is not None
        context_id = process.recording.begin()
        for _ in range(self.network.random.randint(1, 3)):
            self.make_call(process, None, context_id)

    def use_context(self, process: Process) -> None:
        """One more call in a context of the process's own, or a backward pass."""
        assert process.recording is not None
        own = process.recording.own
        if not own:
            self.begin_context(process)
            return
        context_id = self.network.random.choice(own)
        context = process.recording.contexts[context_id]
        if not context.received or context_id in process.passing.busy or self.network.chance(0.3):
            self.make_call(process, None, context_id)
            return
        terminals = [LEAF, *context.received]
        roots = {self.network.random.choice(terminals): self.network.random.randint(1, 3) for _ in range(2)}
        keeps = self.network.chance(0.5)
        process.passing.backward(context, roots, keeps, lambda how: self.note_pass(process, context_id, how))

    def note_pass(self, process: Process, context_id: int, how: str) -> None:
        """A backward pass has ended. Where nothing went wrong, and the context was not ended meanwhile, it ended well."""
        assert process.recording is not None
        self.network.note(f"{process} ends a backward pass: {how}")
        is_excused = self.disturbed or self.has_losses or self.schedule.drop or context_id not in process.recording.own
        if how not in ("ok", NOT_ANNOUNCED) and not is_excused:
            raise BrokenPromise(f"a backward pass of {process} ended by {how}, and there was no fault")

    def end_context(self, process: Process) -> None:
        """The program ends a context, whatever is under way in it."""
        assert process.recording is not None
        if process.recording.own:
            process.recording.end(self.network.random.choice(process.recording.own))

    def let_go(self, process: Process) -> None:
        """Drop a handle."""
        assert process.references is not None
        keys = [key for key, count in process.handles.items() if count]
        if keys:
            process.references.let_go(self.network.random.choice(keys))

    # ------------------------------------------------------------------------------------------------- faults

    def kill(self, process: Process) -> None:
        self.disturbed = True
        process.kill()
        if self.network.chance(0.6):
            self.network.at(self.network.random.random() * 2, self.start, process.name)

    def leave(self, process: Process) -> None:
        if not process.is_frozen:
            self.disturbed = True
            process.leave()

    def join(self, process: Process) -> None:
        """A latecomer; now and then with a name that somebody has."""
        self.start(process.name if self.network.chance(0.2) else f"late-{self._numbers}")

    def reset(self, process: Process) -> None:
        """Its connection to the broker breaks."""
        self.broker.break_connection(process)

    def freeze(self, process: Process) -> None:
        """It is stopped (SIGSTOP) for a while."""
        if process.is_frozen:
            return
        self.disturbed = True
        process.is_frozen = True
        self.network.note(f"{process} is stopped")
        self.network.at(NOTICE, self.broker.notice_silence, process, process.route)
        self.network.at(self.network.random.choice((0.5, 3.0, 8.0)), self.thaw, process)

    def thaw(self, process: Process) -> None:
        if process.is_frozen and not process.is_over:
            self.network.note(f"{process} goes on")
            process.thawed_at = self.network.now
            self.network.thaw(process)
            process.sleep()

    def cut(self, process: Process) -> None:
        """It is cut off from the broker and from all others."""
        self.disturbed = True
        self.network.note(f"{process} is cut off")
        others = [other for other in self.processes.values() if other is not process]
        for other in [*others, self.broker]:
            process.cut_from.add(other)
            other.cut_from.add(process)
        self.network.at(NOTICE, self.broker.notice_silence, process, process.route)
        self.network.at(self.network.random.choice((0.5, 1.5, 6.0)), self.heal, process)

    def cut_two(self, process: Process) -> None:
        """Two workers cannot reach each other, and the broker can reach both."""
        self.disturbed = True
        other = self.network.random.choice(self.living())
        if other is not process:
            process.cut_from.add(other)
            other.cut_from.add(process)
            self.network.at(self.network.random.choice((0.5, 4.0)), self.heal, process)

    def heal(self, process: Process) -> None:
        for other in list(process.cut_from):
            other.cut_from.discard(process)
        process.cut_from.clear()

    def restart_broker(self, _process: Process) -> None:
        """The broker is killed; another one starts at its address after a while."""
        if self.broker.registry is not None:
            self.disturbed = True
            self.broker.stop()
            self.network.at(0.1 + self.network.random.random() * 3, self.broker.start)

    # --------------------------------------------------------------------------------------------- the history

    def run(self) -> None:
        """The whole history."""
        schedule, network = self.schedule, self.network
        for _ in range(schedule.actions):
            network.at(0.5 + network.random.random() * schedule.span, self.act)
        self.advance(0.5 + schedule.span)
        for process in list(self.processes.values()):
            self.heal(process)
            self.thaw(process)
        if self.broker.registry is None:
            self.advance(3.2)  # its successor is on its way
        self.settle("the history", self.unsettled)
        self.check_calls()
        self.settle("the end", self.undrained)

    def end_programs(self) -> None:
        """All programs let go of all references and end their contexts; also of what a late message has brought."""
        for process in self.serving():
            assert process.references is not None
            assert process.recording is not None
            for key, count in list(process.handles.items()):
                for _ in range(count):
                    process.references.let_go(key)
            for context_id in list(process.recording.own):
                process.recording.end(context_id)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self.network.now + seconds
        while self.network.step(until):
            if self.network.steps > MAX_STEPS:
                raise BrokenPromise(f"it never ends: {self.network.steps} steps")

    def settle(self, what: str, look: Callable[[], str]) -> None:
        """Let time pass until `look` finds nothing any more."""
        end = self.network.now + SETTLING
        while found := look():
            if self.network.now >= end:
                raise BrokenPromise(f"{SETTLING:g} s after {what}: {found}")
            self.advance(1.0)

    def unsettled(self) -> str:
        """What is still under way."""
        expected = self.broker.living()
        for process in self.processes.values():
            if process.session.state != "up":
                return f"{process} is not a member"
            known = {m.name: (m.id, m.incarnation) for m in process.session.members.values()}
            if known != expected:
                return f"{process} knows {known}, the broker {expected}"
            if len(process.calls):
                return f"{process} waits: {process.calls}"
            assert process.references is not None
            counts = process.references.table.statistics()
            if counts.num_pending_users or counts.num_pending_children or counts.num_pending_owners:
                return f"{process} has pending references: {process.references.table}"
            if process.running:
                return f"{process} runs"
            if process.repeated:
                return f"{process} waits for {process.repeated}"
            if not all(self.truth.passes[uid] for uid in process.passes):
                return f"{process} waits for a backward pass"
        there = {process.name: tuple(process.peer) for process in self.processes.values()}
        return "" if there == expected else f"the broker knows {expected}, there are {there}"

    def undrained(self) -> str:
        """What is still kept, though nobody holds a reference, or is in a context."""
        self.end_programs()
        for process in self.processes.values():
            if process.references is None:
                continue  # a latecomer
            if not process.references.table.is_drained():
                return f"{process} is not drained: {process.references.table}"
            if process.values:
                return f"{process} leaks {process.values}"
            assert process.recording is not None
            if left := process.recording.left():
                return f"{process} keeps contexts: {left}"
        return ""

    def check_calls(self) -> None:
        """Every call has ended, once."""
        if len(self.truth.ends) != self.truth.made:
            missing = set(range(1, self.truth.made + 1)) - set(self.truth.ends)
            raise BrokenPromise(f"calls that never ended: {sorted(missing)[:10]}")
