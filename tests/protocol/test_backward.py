"""Backward passes without torch: graphs of numbers over several workers, in any order of arrival."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.errors import ProtocolFault
from zrpc.protocol.backward import ROOTS, BackwardPass, Ends, Run, Source, Step, Terminal

LEAF = Terminal(None)


def ends(sources: dict[int, Source], **terminals: int | None) -> Ends:
    """Terminals by names like t3, with their moments."""
    return Ends(sources, {int(name[1:]): Terminal(moment) for name, moment in terminals.items()})


def test_one_source_runs_and_its_terminals_are_complete() -> None:
    machine = BackwardPass(ends({7: Source(1, (0, 1), 0)}, t0=0, t1=None))
    step = machine.arrive(7)
    assert step == Step(runs=(Run((7,), False),))
    assert machine.open_items() == 0
    assert machine.finish(step.runs[0]) == Step((0, 1))
    assert machine.is_over()


def test_a_terminal_waits_for_all_its_sources() -> None:
    machine = BackwardPass(ends({1: Source(1, (0,), 0), 2: Source(2, (0,), 1)}, t0=0))
    first = machine.arrive(1)
    assert machine.finish(first.runs[0]) == Step()
    assert machine.open_items() == 1
    second = machine.arrive(2)
    assert machine.finish(second.runs[0]) == Step((0,))
    assert machine.open_items() == 0


def test_those_that_share_operations_run_together() -> None:
    fan_out = {number: Source(number, (0,), 0) for number in (1, 2, 3)}
    machine = BackwardPass(ends(fan_out, t0=0))
    assert machine.arrive(2) == machine.arrive(1) == Step()
    assert machine.open_items() == 2
    assert machine.arrive(3) == Step(runs=(Run((1, 2, 3), False),))


def test_nobody_waits_for_what_depends_on_him() -> None:
    """1 was sent, its answer came at 2, and was used together with what 1 was made from, for 3."""
    machine = BackwardPass(ends({1: Source(1, (9,), 0), 3: Source(3, (0, 9), 0)}, t0=2, t9=None))
    step = machine.arrive(3)
    assert step.runs == (Run((3,), True),)
    assert machine.finish(step.runs[0]) == Step((0,))  # with which 1's gradient will come
    step = machine.arrive(1)
    assert step.runs == (Run((1,), False),)
    assert machine.finish(step.runs[0]) == Step((9,))


def test_a_graph_that_is_kept() -> None:
    machine = BackwardPass(ends({1: Source(1, (0,), 0)}, t0=None), keep=True)
    assert machine.arrive(1).runs == (Run((1,), True),)


def test_one_run_of_a_group_at_a_time() -> None:
    machine = BackwardPass(ends({1: Source(1, (9,), 0), 3: Source(3, (0,), 0)}, t0=2, t9=None))
    first = machine.arrive(3)
    assert machine.arrive(1) == Step()
    assert machine.finish(first.runs[0]) == Step((0,), (Run((1,), False),))


def test_a_branch_without_a_gradient() -> None:
    machine = BackwardPass(ends({1: Source(1, (0, 9), 0), 2: Source(2, (0,), 0)}, t0=0, t9=None))
    assert machine.arrive(1) == Step()
    assert machine.open_items() == 1
    assert machine.mark_open() == (0,)
    assert machine.mark_open() == ()
    step = machine.settle()
    assert step == Step((), (Run((1,), False),))
    assert machine.finish(step.runs[0]) == Step((0, 9))
    assert machine.is_over()


def test_what_is_marked_is_waited_for() -> None:
    machine = BackwardPass(ends({1: Source(1, (0,), 0), 2: Source(3, (5, 0), 1)}, t0=0, t5=2))
    first = machine.arrive(1)
    assert machine.finish(first.runs[0]) == Step()
    assert machine.mark([2]) == (5, 0)
    assert machine.mark([2]) == ()
    assert machine.settle() == Step()
    second = machine.arrive(2)
    assert machine.finish(second.runs[0]) == Step((5, 0))


@pytest.mark.parametrize("source", [8, 1])
def test_gradients_that_nobody_waits_for(source: int) -> None:
    machine = BackwardPass(ends({1: Source(1, (0,), 0)}, t0=None))
    machine.arrive(1)
    before = repr(machine)
    with pytest.raises(ProtocolFault, match="is not known here" if source == 8 else "it is running"):
        machine.arrive(source)
    assert repr(machine) == before


def test_marks_of_what_is_not_known() -> None:
    machine = BackwardPass(ends({1: Source(1, (0,), 0)}, t0=None))
    with pytest.raises(ProtocolFault, match="not known here"):
        machine.mark([5])


# ------------------------------------------------------------------------------------ whole graphs


@dataclass
class Value:
    """A number computed on a worker: from others there, or received in a message."""

    worker: int
    parents: list[tuple[int, int]] = field(default_factory=list)
    """(value, factor)"""
    message: int | None = None


@dataclass
class Sending:
    """A value that was sent: from where, what it became."""

    value: int
    received: int
    sent_at: int
    came_at: int


class Graph:
    """A random computation over workers, in one real order of events; and its gradient by the rules of algebra."""

    def __init__(self, seed: int, workers: int, events: int) -> None:
        chance = random.Random(seed)
        self.workers = workers
        self.values = [Value(worker) for worker in range(workers)]
        self.sendings: list[Sending] = []
        clock = 0
        for _ in range(events):
            clock += 2
            source = chance.randrange(len(self.values))
            if workers > 1 and chance.random() < 0.5:
                to = chance.choice([w for w in range(workers) if w != self.values[source].worker])
                self.values.append(Value(to, [], len(self.sendings)))
                self.sendings.append(Sending(source, len(self.values) - 1, clock, clock + 1))
            else:
                here = [i for i, value in enumerate(self.values) if value.worker == self.values[source].worker]
                parents = [(chance.choice(here), chance.randint(1, 3)) for _ in range(chance.randint(1, 3))]
                self.values.append(Value(self.values[source].worker, parents))
        self.root = chance.randrange(len(self.values))

    def is_leaf(self, value: int) -> bool:
        return not self.values[value].parents and self.values[value].message is None

    def expected(self) -> dict[int, int]:
        """The gradient of each leaf, in one process."""
        gradients = {self.root: 1}
        for value in range(len(self.values) - 1, -1, -1):
            gradient = gradients.get(value, 0)
            if gradient:
                made = self.values[value]
                for parent, factor in made.parents:
                    gradients[parent] = gradients.get(parent, 0) + factor * gradient
                if made.message is not None:
                    origin = self.sendings[made.message].value
                    gradients[origin] = gradients.get(origin, 0) + gradient
        return {value: gradient for value, gradient in gradients.items() if self.is_leaf(value) and gradient}

    def local(self, value: int, gradient: int) -> dict[int, int]:
        """What comes to the terminals of a worker (values: leaves and received ones) from a gradient of `value`."""
        gradients = {value: gradient}
        for number in range(value, -1, -1):
            for parent, factor in self.values[number].parents:
                if number in gradients:
                    gradients[parent] = gradients.get(parent, 0) + factor * gradients[number]
        return {number: found for number, found in gradients.items() if not self.values[number].parents}

    def inside(self, value: int) -> set[int]:
        """The operations behind a value, on its worker."""
        found: set[int] = set()
        todo = [value]
        while todo:
            number = todo.pop()
            if self.values[number].parents and number not in found:
                found.add(number)
                todo += [parent for parent, _ in self.values[number].parents]
        return found

    def ends_of(self, worker: int) -> Ends:
        starts = {n: (s.value, s.sent_at) for n, s in enumerate(self.sendings) if self.values[s.value].worker == worker}
        if self.values[self.root].worker == worker:
            starts[ROOTS] = (self.root, 1 << 40)
        groups: list[tuple[set[int], set[int]]] = []
        for number, (value, _) in starts.items():
            nodes, members = self.inside(value), {number}
            for group in [group for group in groups if group[0] & nodes]:
                groups.remove(group)
                nodes, members = nodes | group[0], members | group[1]
            groups.append((nodes, members))
        group_of = {number: i for i, (_, members) in enumerate(groups) for number in members}
        sources = {
            number: Source(moment, tuple(sorted(self.local(value, 1))), group_of[number])
            for number, (value, moment) in starts.items()
        }
        reached = {terminal for source in sources.values() for terminal in source.terminals}
        moments = {t: self.values[t].message for t in reached}
        terminals = {t: Terminal(None if m is None else self.sendings[m].came_at) for t, m in moments.items()}
        return Ends(sources, terminals)


class Cluster:
    """All workers' machines, and the messages between them, delivered in any order."""

    def __init__(self, graph: Graph, seed: int) -> None:
        self.graph = graph
        self.chance = random.Random(seed)
        self.machines = [BackwardPass(graph.ends_of(worker)) for worker in range(graph.workers)]
        self.arrived: dict[int, int] = {ROOTS: 1}
        self.sums: dict[int, int] = {}
        self.leaves: dict[int, int] = {}
        self.flying: list[tuple[int, int]] = []
        self.sent: list[int] = []
        self.runs = 0

    def deliver(self) -> None:
        """Deliver messages until there are no more."""
        while self.flying:
            number, gradient = self.flying.pop(self.chance.randrange(len(self.flying)))
            self.arrived[number] = gradient
            worker = self.graph.values[self.graph.sendings[number].value].worker
            self.follow(worker, self.machines[worker].arrive(number))

    def follow(self, worker: int, step: Step) -> None:
        todo = [step]
        while todo:
            step = todo.pop(self.chance.randrange(len(todo)))
            for terminal in step.complete:
                gradient = self.sums.pop(terminal)
                message = self.graph.values[terminal].message
                if message is None:
                    self.leaves[terminal] = gradient
                else:
                    self.sent.append(message)
                    self.flying.append((message, gradient))
            for run in step.runs:
                self.runs += len(run.sources)
                for source in run.sources:
                    value = self.graph.root if source == ROOTS else self.graph.sendings[source].value
                    for terminal, gradient in self.graph.local(value, self.arrived.pop(source)).items():
                        self.sums[terminal] = self.sums.get(terminal, 0) + gradient
                todo.append(self.machines[worker].finish(run))

    def mark(self) -> None:
        """From worker to worker, from what is open on."""
        todo = [(w, t) for w, m in enumerate(self.machines) if m.open_items() for t in m.mark_open()]
        while todo:
            _, terminal = todo.pop(self.chance.randrange(len(todo)))
            message = self.graph.values[terminal].message
            assert message is not None
            worker = self.graph.values[self.graph.sendings[message].value].worker
            todo += [(worker, found) for found in self.machines[worker].mark([message])]

    def backward(self) -> bool:
        """Run a whole pass; False if it had to be marked."""
        worker = self.graph.values[self.graph.root].worker
        self.follow(worker, self.machines[worker].arrive(ROOTS))
        self.deliver()
        if not any(machine.open_items() for machine in self.machines):
            return True
        self.mark()
        for worker in self.chance.sample(range(self.graph.workers), self.graph.workers):
            self.follow(worker, self.machines[worker].settle())
        self.deliver()
        assert not any(machine.open_items() for machine in self.machines)
        return False


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 30), st.integers(0, 2**32))
def test_any_graph_in_any_order(seed: int, workers: int, events: int, order: int) -> None:
    """Every leaf gets what it gets in one process; every message carries one gradient at most; nothing waits for ever."""
    graph = Graph(seed, workers, events)
    cluster = Cluster(graph, order)
    cluster.backward()
    assert cluster.leaves == graph.expected()
    assert len(set(cluster.sent)) == len(cluster.sent)
    assert not cluster.sums


def test_messages_do_not_multiply_with_depth() -> None:
    """Two messages to and fro at each of 40 levels: 2 ** 40 paths, and 80 messages back."""
    graph = Graph(0, 2, 0)
    value, clock = 0, 0
    for level in range(40):
        here, there = level % 2, 1 - level % 2
        copies = []
        for _ in range(2):
            clock += 2
            graph.values.append(Value(there, [], len(graph.sendings)))
            graph.sendings.append(Sending(value, len(graph.values) - 1, clock, clock + 1))
            copies.append((len(graph.values) - 1, 1))
        assert graph.values[value].worker == here
        graph.values.append(Value(there, copies))
        value = len(graph.values) - 1
    graph.root = value
    cluster = Cluster(graph, 1)
    assert cluster.backward()
    assert cluster.leaves == {0: 2**40}
    assert len(cluster.sent) == cluster.runs - 1 == 80
