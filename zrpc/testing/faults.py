"""Faults on purpose: messages that are dropped, late, doubled, overtaken, damaged, or cut off.

One rule: what happens to a message depends on the seed and on nothing else but the message: its kind, who sends it to
whom, and how many of that kind went that way before. Threads may run as they like, a seed does the same again.

A plan judges each message once, where it is sent. It does nothing by itself: `wrap` puts it around the transport of a
worker or of the broker (see `zrpc.testing.faulty`).
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Final

from zrpc.errors import ConfigError
from zrpc.testing.faulty import FaultyTransport, Message, Names, Verdict, kind_of
from zrpc.testing.timers import ThreadTimer, Timer
from zrpc.transport.base import Frames, Transport
from zrpc.wire.envelope import Kind

KEPT: Final = 100_000
"""Injected faults that a plan remembers."""

Kinds = str | Kind | Iterable[str | Kind] | None
Who = str | Iterable[str] | None
Draw = Callable[[random.Random, Verdict], None]


@dataclass(frozen=True, slots=True)
class Injected:
    """Something that was done to a message: the `number`th of its `kind` from `sender` to `receiver`, from 0 on."""

    action: str
    kind: str
    sender: str
    receiver: str
    number: int


class Fault:
    """One rule of a plan. In a `with` statement it ends with the block; `end()` ends it at any time."""

    def __init__(
        self,
        plan: FaultPlan,
        index: int,
        action: str,
        matches: Callable[[Message], bool],
        draw: Draw,
        probability: float,
        count: int | None,
    ) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"fault {action}", [f"probability: expected a number from 0 to 1, not {probability!r}"])
        self.action = action
        self.index = index
        self.injected = 0
        """How often it has acted."""
        self._plan = plan
        self._matches = matches
        self._draw = draw
        self._probability = probability
        self._count = count

    def __repr__(self) -> str:
        return f"<Fault {self.action} acted {self.injected} times>"

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Let messages alone from now on. Those that are delayed already still come late."""
        self._plan._forget(self)

    def judge(self, message: Message, seed: int, verdict: Verdict) -> bool:
        """Whether the fault acts on a message; the verdict says how. The plan's lock is held."""
        if (self._count is not None and self.injected >= self._count) or not self._matches(message):
            return False
        way = f"{message.sender}>{message.receiver}/{message.kind}/{message.number}"
        chance = random.Random(f"{seed}/{self.index}/{way}")
        if chance.random() >= self._probability:
            return False
        self.injected += 1
        self._draw(chance, verdict)
        return True


def _names_of_kinds(kinds: Kinds) -> frozenset[str] | None:
    if kinds is None:
        return None
    given = [kinds] if isinstance(kinds, (str, Kind)) else list(kinds)
    names = frozenset(kind.name if isinstance(kind, Kind) else kind.upper() for kind in given)
    unknown = sorted(names - set(Kind.__members__))
    if unknown:
        raise ConfigError("fault", [f"kinds: there is no kind {name}; see zrpc.wire.envelope.Kind" for name in unknown])
    return names


def _is_among(patterns: Who) -> Callable[[str], bool]:
    if patterns is None:
        return lambda name: True
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in wanted)


class FaultPlan:
    """What is to go wrong on a network, and a record of what did.

    Rules may be added and ended at any time. All that match a message act on it, in the order in which they were added.
    What they have in common:

    - `probability` that a message which matches is hit;
    - `kinds`: names of message kinds ("CALL", "REPLY", ...: `zrpc.wire.envelope.Kind`), None for all;
    - `sender`, `receiver`: names of workers, or patterns such as "worker-*"; `BROKER` is the broker; None for all;
    - `count`: how often the rule acts at most.

    A worker's calls to itself pass no network, and meet no faults. Times are seconds, on `timer`'s clock.
    """

    def __init__(self, seed: int = 0, timer: Timer | None = None) -> None:
        self.seed = seed
        self.timer: Timer = timer or ThreadTimer()
        self.names = Names()
        self._lock = threading.Lock()
        self._faults: tuple[Fault, ...] = ()
        self._added = 0
        self._passed: Counter[tuple[str, str, str]] = Counter()
        self._counts: Counter[str] = Counter()
        self._log: deque[Injected] = deque(maxlen=KEPT)

    def __repr__(self) -> str:
        done = ", ".join(f"{count} {action}" for action, count in sorted(self._counts.items()))
        return f"<FaultPlan seed={self.seed} injected: {done or 'nothing'}>"

    # --------------------------------------------------------------------------------------------- rules

    def drop(
        self,
        probability: float = 1.0,
        *,
        kinds: Kinds = None,
        sender: Who = None,
        receiver: Who = None,
        count: int | None = None,
    ) -> Fault:
        """Messages get lost. Raises `ConfigError` for a kind that does not exist, as all rules do."""

        def draw(chance: random.Random, verdict: Verdict) -> None:
            verdict.is_dropped = True

        return self._add("drop", draw, probability, kinds, sender, receiver, count)

    def delay(
        self,
        shortest: float,
        longest: float | None = None,
        probability: float = 1.0,
        *,
        kinds: Kinds = None,
        sender: Who = None,
        receiver: Who = None,
        count: int | None = None,
    ) -> Fault:
        """Messages come late, by `shortest` to `longest` seconds; what follows on the same connection waits for them."""

        def draw(chance: random.Random, verdict: Verdict) -> None:
            verdict.delay += chance.uniform(shortest, shortest if longest is None else longest)

        return self._add("delay", draw, probability, kinds, sender, receiver, count)

    def reorder(
        self,
        within: float,
        probability: float = 1.0,
        *,
        kinds: Kinds = None,
        sender: Who = None,
        receiver: Who = None,
        count: int | None = None,
    ) -> Fault:
        """Messages come up to `within` seconds late, and others overtake them."""

        def draw(chance: random.Random, verdict: Verdict) -> None:
            verdict.delay += chance.uniform(0.0, within)
            verdict.may_be_overtaken = True

        return self._add("reorder", draw, probability, kinds, sender, receiver, count)

    def duplicate(
        self,
        probability: float = 1.0,
        *,
        after: float = 0.0,
        kinds: Kinds = None,
        sender: Who = None,
        receiver: Who = None,
        count: int | None = None,
    ) -> Fault:
        """Messages come twice, the second time `after` seconds later."""

        def draw(chance: random.Random, verdict: Verdict) -> None:
            verdict.repetitions.append(after)

        return self._add("duplicate", draw, probability, kinds, sender, receiver, count)

    def corrupt(
        self,
        probability: float = 1.0,
        *,
        kinds: Kinds = None,
        sender: Who = None,
        receiver: Who = None,
        count: int | None = None,
    ) -> Fault:
        """One to four bytes of a message are changed, before encryption: what a broken peer sends, not a broken wire."""

        def draw(chance: random.Random, verdict: Verdict) -> None:
            verdict.damage = chance

        return self._add("corrupt", draw, probability, kinds, sender, receiver, count)

    def partition(self, one: Who, other: Who = None, *, one_way: bool = False) -> Fault:
        """Nothing passes between workers of `one` and of `other` (None: everybody else), until the fault is ended.

        `one_way`: only what goes from `one` to `other` is lost. Connections stay open, as when a cable is cut.
        """
        is_one = _is_among(one)
        is_other = _is_among(other) if other is not None else lambda name: not is_one(name)

        def matches(message: Message) -> bool:
            if is_one(message.sender) and is_other(message.receiver):
                return True
            return not one_way and is_one(message.receiver) and is_other(message.sender)

        def draw(chance: random.Random, verdict: Verdict) -> None:
            verdict.is_dropped = True

        with self._lock:
            return self._remember(Fault(self, self._added, "partition", matches, draw, 1.0, None))

    def _add(
        self, action: str, draw: Draw, probability: float, kinds: Kinds, sender: Who, receiver: Who, count: int | None
    ) -> Fault:
        wanted = _names_of_kinds(kinds)
        is_sender, is_receiver = _is_among(sender), _is_among(receiver)

        def matches(message: Message) -> bool:
            return (
                (wanted is None or message.kind in wanted)
                and is_sender(message.sender)
                and is_receiver(message.receiver)
            )

        with self._lock:
            return self._remember(Fault(self, self._added, action, matches, draw, probability, count))

    def _remember(self, fault: Fault) -> Fault:
        self._added += 1
        self._faults = (*self._faults, fault)
        return fault

    def _forget(self, fault: Fault) -> None:
        with self._lock:
            self._faults = tuple(other for other in self._faults if other is not fault)

    def heal(self) -> None:
        """End all rules."""
        with self._lock:
            self._faults = ()

    # ------------------------------------------------------------------------------------------- use

    def wrap(self, transport: Transport, name: str) -> FaultyTransport:
        """`transport`, with this plan's faults in what worker `name` (or `BROKER`) sends.

        Closing it closes the inner one. Workers of one process may share the plan, and should: it learns from each
        which address belongs to whom.
        """
        return FaultyTransport(transport, self, name)

    def for_worker(self, name: str) -> Callable[[Transport], Transport]:
        """What `init_rpc(wrap_transport=)` takes: wraps this worker's transport when it is made."""
        return lambda transport: self.wrap(transport, name)

    def judge(self, frames: Frames, sender: str, receiver: str) -> Verdict | None:
        """What is to become of a message; None: nothing, it goes its way. Counts while there are rules."""
        if not self._faults:
            return None
        kind = kind_of(frames)
        verdict = Verdict()
        with self._lock:
            way = (sender, receiver, kind)
            message = Message(kind, sender, receiver, self._passed[way])
            self._passed[way] += 1
            is_hit = False
            for fault in self._faults:
                if fault.judge(message, self.seed, verdict):
                    is_hit = True
                    self._counts[fault.action] += 1
                    self._log.append(Injected(fault.action, kind, sender, receiver, message.number))
                    if verdict.is_dropped:
                        break
        return verdict if is_hit else None

    def injected(self) -> list[Injected]:
        """What was done, oldest first; of a very long run the newest."""
        with self._lock:
            return list(self._log)

    def counts(self) -> Mapping[str, int]:
        """How often each action was done."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """End all rules; what is delayed is lost."""
        self.heal()
        self.timer.close()
