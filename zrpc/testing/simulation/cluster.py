"""A whole simulated cluster: a history of chance, then peace, and what must hold in the end.

One rule: a history ends with a check of everything. Faults stop, calls end, the membership comes to agree; then the program
lets go of all references, and nothing may be left of them.
"""

from __future__ import annotations

from collections.abc import Callable

from zrpc.protocol.rrefs import Peer
from zrpc.testing.simulation.brokers import Brokers, heal
from zrpc.testing.simulation.network import Network
from zrpc.testing.simulation.passes import NOT_ANNOUNCED
from zrpc.testing.simulation.recording import LEAF
from zrpc.testing.simulation.repeating import Repeated
from zrpc.testing.simulation.schedule import Schedule
from zrpc.testing.simulation.truth import BrokenPromise, Truth
from zrpc.testing.simulation.worker import Process

MAX_STEPS = 2_000_000
PROMISED = 5.0
"""Seconds within which a newcomer is in after the broker in charge is lost, where a standby is there."""
MOST = 30.0
"""The same where messages to brokers are lost on the way."""
SETTLING = 200.0
"""Simulated seconds in which everything must come to rest: the broker's patience, retries and graces are below 60."""


class Simulation:
    """One history; `run` raises `BrokenPromise` where a promise is broken."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.network = Network(schedule)
        self.truth = Truth()
        self.brokers = Brokers(self.network, schedule.standby)
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
        for other in self.processes.values():
            if other.name == name:
                other.is_spotless = process.is_spotless = False
        self.processes[process.number] = process

    def on_exit(self, process: Process) -> None:
        """A process has ended: its connections close."""
        del self.processes[process.number]
        process.close_lines()

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
            events += [self.restart_broker] if schedule.broker_restarts and not schedule.standby else []
            events += [self.harm_brokers] * 3 if schedule.standby else []
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
        """A connection to a broker breaks."""
        if process.lines:
            process.is_spotless = False  # where messages take long, it is not back before it is given up
            self.network.random.choice(list(process.lines.values())).break_off()

    def freeze(self, process: Process) -> None:
        """It is stopped (SIGSTOP) for a while."""
        if process.is_frozen:
            return
        self.disturbed = True
        process.is_frozen = True
        process.is_spotless = False
        self.network.note(f"{process} is stopped")
        self.brokers.watch_silence(process)
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
        process.is_spotless = False
        self.brokers.cut(process, [*self.processes.values(), *self.brokers.all])
        self.network.at(self.network.random.choice((0.5, 1.5, 6.0)), heal, process)

    def cut_two(self, process: Process) -> None:
        """Two workers cannot reach each other, and the broker can reach both."""
        self.disturbed = True
        other = self.network.random.choice(self.living())
        if other is not process:
            process.cut_from.add(other)
            other.cut_from.add(process)
            self.network.at(self.network.random.choice((0.5, 4.0)), heal, process)

    def restart_broker(self, _process: Process) -> None:
        """The broker is killed; another one starts at its address after a while."""
        self.disturbed = True
        self.brokers.kill(self.brokers.all[0], 0.1 + self.network.random.random() * 3)

    def harm_brokers(self, _process: Process) -> None:
        """Something happens to one of two brokers, or both."""
        self.disturbed = True
        self.brokers.misbehave(list(self.processes.values()))

    # --------------------------------------------------------------------------------------------- the history

    def run(self) -> None:
        """The whole history."""
        schedule, network = self.schedule, self.network
        for _ in range(schedule.actions):
            network.at(0.5 + network.random.random() * schedule.span, self.act)
        self.advance(0.5 + schedule.span)
        for process in list(self.processes.values()):
            heal(process)
            self.thaw(process)
        self.brokers.make_peace()
        self.settle("the history", self.unsettled)
        self.check_calls()
        if schedule.standby:
            self.check_take_over()
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
        if problem := self.brokers.unsettled():
            return problem
        expected = self.brokers.living()
        for process in self.processes.values():
            if process.session.state != "up":
                return f"{process} is not a member"
            known = {m.name: (m.id, m.incarnation) for m in process.session.members.values()}
            if known != expected:
                return f"{process} knows {known}, the broker {expected}"
            if process.allegiance.current != self.brokers.in_charge()[0].address:
                return f"{process} is with {process.allegiance}, not with {self.brokers.in_charge()}"
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

    def leaving(self) -> str:
        """Who is about to leave, and whatever else is not settled."""
        leaving = [process for process in self.processes.values() if process.is_leaving]
        return f"{leaving} have not left" if leaving else self.unsettled()

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

    def check_take_over(self) -> None:
        """Once more, when nothing else goes wrong: the broker in charge is lost, and all is to be as promised in time."""
        self.settle("the history", self.leaving)  # who takes leave has no say
        network, (first,) = self.network, self.brokers.in_charge()
        second = self.brokers.other(first)
        before, began = first.living(), network.now
        if network.chance(0.5):
            self.brokers.kill(first, 20.0)
        else:
            self.brokers.freeze(first, 8.0)
        self.start(f"newcomer-{self._numbers}")
        promised = PROMISED + 4 * self.schedule.latency  # there and back, for a vote and for a newcomer
        newcomer = list(self.processes.values())[-1]
        while newcomer.session.state != "up" and network.now < began + MOST:
            self.advance(0.05)
        waited = network.now - began
        if newcomer.session.state != "up" or (waited > promised and not self.schedule.unruly_broker):
            raise BrokenPromise(f"{newcomer} has waited for {waited:.2f} s since the broker in charge was lost")
        assert second is not None
        kept = second.living()
        if {name: kept.get(name) for name in before} != before and not self.schedule.unruly_broker:
            raise BrokenPromise(f"{second} has taken over, and knows {kept}, not {before}")
        self.settle("the last take-over", self.unsettled)

    def check_calls(self) -> None:
        """Every call has ended, once."""
        if len(self.truth.ends) != self.truth.made:
            missing = set(range(1, self.truth.made + 1)) - set(self.truth.ends)
            raise BrokenPromise(f"calls that never ended: {sorted(missing)[:10]}")
