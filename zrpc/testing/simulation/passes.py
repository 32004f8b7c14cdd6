"""Backward passes of a simulated process: what `zrpc.autograd.engine` and `.passing` are for real, with numbers.

One rule: a pass that ends well has computed what algebra says, on every worker that still has its context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from zrpc.errors import ProtocolFault
from zrpc.protocol.backward import ROOTS, Step
from zrpc.protocol.outbox import Peer
from zrpc.testing.simulation.recording import LEAF, Combination, Context, PassId, PassState
from zrpc.testing.simulation.truth import BrokenPromise

if TYPE_CHECKING:
    from zrpc.testing.simulation.worker import Call, Process

GRADIENTS, MARK, SETTLE = "gradients", "mark", "settle"
NOT_ANNOUNCED = "not announced"
"""How a pass ends that comes to a worker whose joining its neighbour has not heard of yet."""
MESSAGE_SECONDS = 8.0
"""The deadline of one message of a pass."""

Done = Callable[[int, frozenset[int], str], None]
"""(change of the number of open items, workers, what went wrong)"""


class Count:
    """Waits for the parts of something, and for its own `close`."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._left = 1
        self._change = 0
        self._workers: set[int] = set()
        self._error = ""

    def expect(self) -> None:
        """One more part will report."""
        self._left += 1

    def note(self, change: int = 0, workers: Iterable[int] = (), error: str = "") -> None:
        """Something is known already."""
        self._change += change
        self._workers.update(workers)
        self._error = self._error or error

    def report(self, change: int = 0, workers: Iterable[int] = (), error: str = "") -> None:
        """A part has ended."""
        self.note(change, workers, error)
        self._left -= 1
        if self._left == 0:
            self._done(self._change, frozenset(self._workers), self._error)


class Passing:
    """The passes of one process, and its parts in those of others."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._passes = 0
        self.busy: set[int] = set()
        """Contexts that a pass from here is under way in."""
        self.spoilt: set[int] = set()
        """Contexts that a pass has failed in: what is late of it may still come."""

    # ------------------------------------------------------------------------------------- a pass that begins here

    def backward(self, context: Context, roots: Combination, keep: bool, on_end: Callable[[str], None]) -> None:
        """Begin a pass; `on_end` is told how it ended."""
        process = self.process
        self._passes += 1
        pass_id = process.peer.incarnation, self._passes
        uid = process.truth.begin_pass(process)
        self.busy.add(context.context_id)
        expected = self._expected(context, roots)
        before = {peer: c.gradient for peer, c in self._everywhere(context.context_id)}

        def end(how: str) -> None:
            context.passes.pop(pass_id, None)
            process.truth.end_pass(uid, how)
            self.busy.discard(context.context_id)
            if how != "ok":
                self.spoilt.add(context.context_id)
            elif context.context_id not in self.spoilt:
                self._check(context.context_id, expected, before)
            on_end(how)

        def spread(what: Callable[[Count], None], then: Callable[[int, frozenset[int]], None]) -> None:
            def done(change: int, workers: frozenset[int], error: str) -> None:
                if error:
                    end(error)
                else:
                    then(change, workers)

            count = Count(done)
            what(count)
            count.report()

        def everybody(workers: Iterable[int], what: str) -> Callable[[Count], None]:
            def tell(count: Count) -> None:
                for worker in sorted(workers):
                    self.send(Peer(worker, 0), context.context_id, (what, pass_id, 0, keep, ()), count)

            return tell

        def rest(left: int, workers: frozenset[int]) -> None:
            if not left:
                end("ok")
                return

            def settle(_change: int, visited: frozenset[int]) -> None:
                def last(change: int, _: frozenset[int]) -> None:
                    end("open" if left + change else "ok")

                spread(everybody(workers | visited, SETTLE), last)

            spread(everybody(workers, MARK), settle)

        def begin(count: Count) -> None:
            state = context.begin_pass(pass_id, keep, roots)
            state.arrived[ROOTS] = 1
            self._step(context, pass_id, state, keep, lambda: state.machine.arrive(ROOTS), count)

        spread(begin, rest)

    def _everywhere(self, context_id: int) -> list[tuple[Peer, Context]]:
        found = []
        for process in self.process.cluster.processes.values():
            context = process.recording.contexts.get(context_id) if process.recording is not None else None
            if context is not None:
                found.append((process.peer, context))
        return found

    def _expected(self, context: Context, roots: Combination) -> Counter[Peer]:
        """The gradient of each worker's leaf, by algebra, over the graphs of all workers as they are now."""
        contexts = dict(self._everywhere(context.context_id))
        found: Counter[Peer] = Counter()
        todo: list[tuple[Peer, Combination, int]] = [(self.process.peer, roots, 1)]
        while todo:
            peer, value, gradient = todo.pop()
            for terminal, factor in value.items():
                if terminal == LEAF:
                    found[peer] += factor * gradient
                    continue
                received = contexts[peer].received[terminal]
                sender = contexts.get(received.sender)
                if sender is not None and received.number in sender.sent:
                    todo.append((received.sender, sender.sent[received.number].value, factor * gradient))
        return found

    def _check(self, context_id: int, expected: Counter[Peer], before: dict[Peer, int]) -> None:
        for peer, context in self._everywhere(context_id):
            want = before.get(peer, 0) + expected[peer]
            if context.gradient != want:
                raise BrokenPromise(f"{peer} has the gradient {context.gradient} in {context_id:#x}, not {want}")

    # --------------------------------------------------------------------------------------------- messages

    def send(self, to: Peer, context_id: int, message: tuple[Any, ...], count: Count) -> None:
        """Send a message of a pass; its answer goes to the count."""
        process = self.process
        count.expect()
        member = process.session.members_by_id.get(to.worker_id)
        is_there = member is not None and to.incarnation in (0, member.incarnation)
        other = process.cluster.by_peer_of(Peer(member.id, member.incarnation)) if is_there and member else None
        if other is None:
            count.report(error="lost" if to in process.lost else NOT_ANNOUNCED)
            return

        def on_end(how: str) -> None:
            if how != "result":
                count.report(error=how)
                return
            change, workers, error = call.value
            count.report(change, workers, error)

        call = process.begin(other, MESSAGE_SECONDS, other.on_backward, context_id, message, on_end=on_end)

    def take(self, sender: Process, call: Call, context_id: int, message: tuple[Any, ...]) -> None:
        """A message of a pass came."""
        process = self.process
        assert process.recording is not None

        def done(change: int, workers: frozenset[int], error: str) -> None:
            call.value = change, workers, error
            process.answer(sender, call, "result", [])

        count = Count(done)
        context = process.recording.contexts.get(context_id)
        if context is None:
            count.note(error="no context")
        else:
            self._take(context, message, count)
        count.report()

    def _take(self, context: Context, message: tuple[Any, ...], count: Count) -> None:
        what, pass_id, number, keep, rest = message
        state = context.passes.get(pass_id)
        if what == SETTLE:
            if state is not None:
                self._step(context, pass_id, state, keep, state.machine.settle, count)
            return
        if state is None:
            state = context.begin_pass(pass_id, keep, None)
        if what == GRADIENTS:
            state.arrived.setdefault(number, rest)
            self._step(context, pass_id, state, keep, lambda: state.machine.arrive(number), count)
        else:
            terminals = state.machine.mark(rest) if rest else state.machine.mark_open()
            count.note(workers=(self.process.peer.worker_id,))
            by_sender: dict[Peer, list[int]] = {}
            for terminal in terminals:
                received = context.received[terminal]
                by_sender.setdefault(received.sender, []).append(received.number)
            for sender, numbers in by_sender.items():
                self.send(sender, context.context_id, (MARK, pass_id, 0, keep, numbers), count)

    def _step(
        self, context: Context, pass_id: PassId, state: PassState, keep: bool, event: Callable[[], Step], count: Count
    ) -> None:
        """Give the machine an event, and do what it says until there is nothing more to do."""
        machine, me = state.machine, self.process.peer.worker_id
        if state.failure:
            count.note(error=state.failure)
            return

        def advance(event: Callable[[], Step]) -> Step:
            before = machine.open_items()
            step = event()
            change = machine.open_items() - before
            if machine.is_over():
                context.passes.pop(pass_id, None)
            count.note(change, (me,) if change > 0 else ())
            return step

        try:
            todo = [advance(event)]
            while todo:
                step = todo.pop()
                for terminal in step.complete:
                    self._pass_on(context, pass_id, state, keep, terminal, count)
                for run in step.runs:
                    for source in run.sources:
                        gradient = state.arrived.pop(source)
                        for terminal, factor in state.sources[source].items():
                            state.sums[terminal] += factor * gradient
                    todo.append(advance(lambda run=run: machine.finish(run)))  # type: ignore[misc]
        except ProtocolFault as error:
            state.failure = f"{error}"
            count.note(error=state.failure)

    def _pass_on(
        self, context: Context, pass_id: PassId, state: PassState, keep: bool, terminal: int, count: Count
    ) -> None:
        gradient = state.sums.pop(terminal, 0)
        if terminal == LEAF:
            context.gradient += gradient
        else:
            received = context.received[terminal]
            message = GRADIENTS, pass_id, received.number, keep, gradient
            self.send(received.sender, context.context_id, message, count)
