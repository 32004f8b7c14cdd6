"""One backward pass on one worker, without I/O and without torch: what may run, what is complete, what is still awaited.

A worker's part of the recorded graph is known here by its ends only:

    sources     where gradients enter: messages that left this worker in the forward pass (their gradients come back from
                their receivers), and the roots of the pass
    terminals   where gradients leave: messages that came to it (their gradients go back to their senders), and leaves

One rule: a source runs once, and a terminal is complete once, when every source that reaches it has run. So a gradient
crosses each recorded message once, however the branches of the graph meet and part: what it costs does not grow with the
number of paths.

Which sources get a gradient in this pass is not known at first. It is taken that all do (the assumption of torch's "FAST
mode"). When that is wrong, the pass comes to rest with something open; then the branches that still get a gradient are
*marked* from what is open on, from worker to worker, and what is neither marked nor there is *absent* from the pass
("SMART mode", decided only when it is needed).

    source:    expected --arrive--> arrived --run--> running --finish--> done
                  '------settle, not marked--------> absent
    terminal:  untouched --finish of a source--> open --finish of the last one--> complete

Sources that share operations form a *group*. Running two of them together runs what they share once, so a source waits
for others of its group as long as that is safe. It is, if no message whose gradient it will give came after the other
left: an answer to something depends only on what was sent before it came, so the gradients that others wait for
cannot hang on the one that is held back. (The order of sending and receiving over all workers has no circle; the waits
follow it.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from zrpc.errors import ProtocolFault

ROOTS: Final = -1
"""The source that stands for the roots of the pass, on the worker where it began."""

EXPECTED: Final = "expected"
ARRIVED: Final = "arrived"
RUNNING: Final = "running"
DONE: Final = "done"
ABSENT: Final = "absent"


class Source(NamedTuple):
    """A place where gradients enter: when its message left, what it reaches, whom it shares operations with."""

    moment: int
    terminals: tuple[int, ...]
    group: int


class Terminal(NamedTuple):
    """A place where gradients leave: when its message came; None for a leaf."""

    moment: int | None


class Ends(NamedTuple):
    """The ends of the recorded graph on one worker."""

    sources: Mapping[int, Source]
    terminals: Mapping[int, Terminal]


class Run(NamedTuple):
    """To be run together, and then reported by `finish`. `keep`: others will run the same operations again."""

    sources: tuple[int, ...]
    keep: bool


class Step(NamedTuple):
    """What is to be done: terminals that are complete, and what may run."""

    complete: tuple[int, ...] = ()
    runs: tuple[Run, ...] = ()


class BackwardPass:
    """One pass on one worker. `ends` must hold every message that can be in the pass; nothing is added later."""

    def __init__(self, ends: Ends, keep: bool = False) -> None:
        self._ends = ends
        self._keep = keep
        self._states: dict[int, str] = dict.fromkeys(ends.sources, EXPECTED)
        self._marked: set[int] = set()
        self._announced: set[int] = set()
        self._left: dict[int, set[int]] = {terminal: set() for terminal in ends.terminals}
        self._touched: set[int] = set()
        self._groups: dict[int, list[int]] = {}
        self._latest: dict[int, int] = {}
        for source, shape in ends.sources.items():
            self._groups.setdefault(shape.group, []).append(source)
            moments = [ends.terminals[terminal].moment for terminal in shape.terminals]
            self._latest[source] = max((moment for moment in moments if moment is not None), default=-1)
            for terminal in shape.terminals:
                self._left[terminal].add(source)

    def __repr__(self) -> str:
        counts = {state: list(self._states.values()).count(state) for state in set(self._states.values())}
        return f"<BackwardPass open={self.open_items()} {counts}>"

    def open_items(self) -> int:
        """What has come in and not gone on: sources that have not run, terminals that are not complete."""
        return list(self._states.values()).count(ARRIVED) + len(self._touched)

    def is_over(self) -> bool:
        """Whether nothing more can happen in this pass here."""
        return not self._touched and all(state in (DONE, ABSENT) for state in self._states.values())

    def is_awaited(self, terminal: int) -> bool:
        """Whether a terminal is not complete, and still may be."""
        return terminal in self._touched or bool(self._left[terminal])

    # ------------------------------------------------------------------------------------ events

    def arrive(self, source: int) -> Step:
        """The gradient for a source is there. Raises `ProtocolFault` if it is not one, or its gradient came before."""
        state = self._states.get(source)
        if state != EXPECTED:
            what = "is not known here" if state is None else f"has had its gradient in this pass (it is {state})"
            raise ProtocolFault(f"a gradient for message {source}, which {what}")
        self._states[source] = ARRIVED
        return Step(runs=self._start(self._ends.sources[source].group))

    def finish(self, run: Run) -> Step:
        """The sources of `run` have been run."""
        complete = []
        for source in run.sources:
            self._move(source, RUNNING, DONE)
            for terminal in self._ends.sources[source].terminals:
                self._left[terminal].discard(source)
                self._touched.add(terminal)
        for source in run.sources:
            complete += self._take_complete(self._ends.sources[source].terminals)
        return Step(tuple(complete), self._start(self._ends.sources[run.sources[0]].group))

    def mark(self, sources: Iterable[int]) -> tuple[int, ...]:
        """These sources will get a gradient. Returns the messages (terminals) that, by that, will give one too.

        Each is returned once. Raises `ProtocolFault` for a source that is not one.
        """
        reached: list[int] = []
        for source in sources:
            shape = self._ends.sources.get(source)
            if shape is None:
                raise ProtocolFault(f"message {source} is to get a gradient, and is not known here")
            if source not in self._marked and self._states[source] == EXPECTED:
                self._marked.add(source)
                reached += shape.terminals
        return self._announce(reached)

    def mark_open(self) -> tuple[int, ...]:
        """The messages (terminals) that will give a gradient because of what is open here."""
        reached = list(self._touched)
        for source, state in self._states.items():
            if state in (ARRIVED, RUNNING):
                reached += self._ends.sources[source].terminals
        return self._announce(reached)

    def settle(self) -> Step:
        """All marks have been made, everywhere: sources that are neither there nor marked are absent from the pass."""
        for source, state in self._states.items():
            if state == EXPECTED and source not in self._marked:
                self._states[source] = ABSENT
                for terminal in self._ends.sources[source].terminals:
                    self._left[terminal].discard(source)
        complete = self._take_complete(sorted(self._touched))
        runs = [run for group in self._groups for run in self._start(group)]
        return Step(tuple(complete), tuple(runs))

    # ------------------------------------------------------------------------------------ inside

    def _move(self, source: int, before: str, after: str) -> None:
        if self._states.get(source) != before:
            raise ProtocolFault(f"message {source} is {self._states.get(source)} in this pass, not {before}")
        self._states[source] = after

    def _take_complete(self, terminals: Iterable[int]) -> list[int]:
        found = []
        for terminal in terminals:
            if terminal in self._touched and not self._left[terminal]:
                self._touched.discard(terminal)
                found.append(terminal)
        return found

    def _announce(self, terminals: Iterable[int]) -> tuple[int, ...]:
        """Those of `terminals` that are messages, and have not been announced before."""
        new = []
        for terminal in terminals:
            if self._ends.terminals[terminal].moment is not None and terminal not in self._announced:
                self._announced.add(terminal)
                new.append(terminal)
        return tuple(new)

    def _start(self, group: int) -> tuple[Run, ...]:
        """What may run in a group now. One run at a time: the one that is last lets go of what they share."""
        members = self._groups[group]
        states = self._states
        if any(states[source] == RUNNING for source in members):
            return ()
        awaited = max((self._ends.sources[s].moment for s in members if states[s] == EXPECTED), default=-1)
        ready = tuple(s for s in members if states[s] == ARRIVED and self._latest[s] >= awaited)
        if not ready:
            return ()
        for source in ready:
            states[source] = RUNNING
        keep = self._keep or any(states[source] in (EXPECTED, ARRIVED) for source in members)
        return (Run(ready, keep),)
