"""The brokers of a simulated cluster, one or a pair, what happens to them, and what they promise together.

One rule: two of them never let newcomers in at the same time, whatever happened to them. It is looked at after each event.
"""

from __future__ import annotations

import itertools
from collections import Counter

from zrpc.protocol.effects import SteppedDown, TookOver
from zrpc.testing.simulation.broker import Broker
from zrpc.testing.simulation.lines import NOTICE, Line, Speaker
from zrpc.testing.simulation.network import Network, Place
from zrpc.testing.simulation.truth import BrokenPromise

ADDRESSES = ("tcp://a:1", "tcp://b:1")
AWAY = (0.1, 2.0, 8.0)
"""Seconds until one of a pair is started again: before the other has taken over, about then, and after."""
STOPPED = (0.3, 1.2, 2.2, 6.0)


class Brokers:
    """All brokers. `has_standby`: there are two."""

    def __init__(self, network: Network, has_standby: bool) -> None:
        self.network = network
        self.all = [Broker(self, address) for address in ADDRESSES[: 2 if has_standby else 1]]
        self.count = len(self.all)
        self.addresses = tuple(broker.address for broker in self.all)
        self.seen: Counter[str] = Counter()
        """Take-overs, and brokers that stepped down."""
        self.forgot = False
        """Whether there was a moment in which no broker knew what the cluster knows: members alone do, then."""
        self.cut_alone = False
        """Whether one was cut off that had no standby: it holds all who do not come back at once for dead."""
        self._routes = itertools.count(1)
        self._runs = 0
        for broker in self.all:
            self._start(broker, "" if broker is self.all[0] else self.all[0].address)

    # ---------------------------------------------------------------------------------------- connections

    def open(self, owner: Speaker, address: str) -> None:
        """A worker or a broker connects to the broker at an address."""
        broker = next(one for one in self.all if one.address == address)
        line = owner.lines[address] = Line(self.network, owner, broker, self._routes)
        line.is_unruly = self.network.schedule.unruly_broker and not isinstance(owner, Broker)
        self.network.at(0.01, line.connect)

    def watch_silence(self, place: Place) -> None:
        """Somebody was stopped or cut off: connections that do not answer are given up after a while."""
        lines = list(place.lines.values()) if isinstance(place, Speaker) else []
        lines += list(place.guests.values()) if isinstance(place, Broker) else []
        for line in lines:
            self.network.at(NOTICE, line.notice_silence, line.route)

    # ---------------------------------------------------------------------------------------- who is there

    def in_charge(self) -> list[Broker]:
        """Those that hold themselves to be in charge, and run."""
        return [broker for broker in self.all if broker.registry is not None and not broker.is_frozen]

    def other(self, broker: Broker) -> Broker | None:
        """The other one of a pair."""
        return next((one for one in self.all if one is not broker), None)

    def check(self) -> None:
        """Of two that are in charge one at most lets newcomers in."""
        now = self.network.now
        admitting = [b for b in self.in_charge() if b.seat and b.seat.primary and b.seat.primary.may_admit(now)]
        if len(admitting) > 1:
            raise BrokenPromise(f"two brokers let newcomers in: {admitting}")

    def note_news(self, broker: Broker, news: TookOver | SteppedDown) -> None:
        self.seen[type(news).__name__] += 1

    # --------------------------------------------------------------------------------------------- faults

    def _start(self, broker: Broker, follows: str) -> None:
        if not broker.is_running:
            self._runs += 1
            broker.start(follows, self._runs)

    def start_again(self, broker: Broker) -> None:
        """As a launcher does it: to stand by for the other one, if there is another one."""
        other = self.other(broker)
        self._start(broker, "" if other is None else other.address)

    def kill(self, broker: Broker, away: float) -> None:
        """It is killed, and started again after `away` seconds."""
        if broker.is_running:
            broker.kill()
            self.forgot |= not any(one.knows for one in self.all)
            self.network.at(away, self.start_again, broker)

    def freeze(self, broker: Broker, seconds: float) -> None:
        """It is stopped (SIGSTOP) for a while."""
        if broker.is_running and not broker.is_frozen:
            self.network.note(f"{broker.address} is stopped")
            broker.is_frozen = True
            self.watch_silence(broker)
            broker.stops += 1
            self.network.at(seconds, self.thaw, broker, broker.stops)

    def thaw(self, broker: Broker, stop: int) -> None:
        """It goes on, if it was not killed since, or stopped once more."""
        if broker.is_frozen and broker.stops == stop:
            self.network.note(f"{broker.address} goes on")
            broker.go_on()

    def cut(self, one: Place, others: list[Place]) -> None:
        """Nothing passes between one and others."""
        for other in others:
            if other is not one:
                one.cut_from.add(other)
                other.cut_from.add(one)
        for broker in self.all:
            self.watch_silence(broker)
        self.watch_silence(one)

    def misbehave(self, workers: list[Place]) -> None:
        """Something happens to a broker of a pair."""
        chance = self.network.random
        broker = chance.choice(self.all)
        what = chance.choice(("kill", "kill", "freeze", "freeze", "cut", "part", "kill both"))
        if what == "kill":
            self.kill(broker, chance.choice(AWAY))
        elif what == "freeze":
            self.freeze(broker, chance.choice(STOPPED))
        elif what == "kill both":
            for each in self.all:
                self.kill(each, chance.choice(AWAY))
        else:
            self.network.note(f"{broker.address} is {what}")
            # Healing one of two cuts lets a broker hear the other one, and no member.
            self.cut_alone |= any(one.cut_from for one in self.all)
            primaries = [one.seat.primary for one in self.all if one.seat is not None and one.seat.primary is not None]
            self.cut_alone |= not all(
                primary.pair for primary in primaries
            )  # it cannot know that it is the one that is
            self.cut(broker, [*workers, *self.all] if what == "cut" else list(self.all))
            self.network.at(chance.choice((0.5, 1.5, 6.0)), heal, broker)

    def make_peace(self) -> None:
        """No more faults of brokers."""
        for broker in self.all:
            heal(broker)
            self.thaw(broker, broker.stops)

    # ----------------------------------------------------------------------------------------- in the end

    def unsettled(self) -> str:
        """What is not as it is to be: one in charge, and the other one, if there is one, knows what it knows."""
        if len(self.in_charge()) != 1:
            return f"not one broker is in charge: {self.all}"
        (first,) = self.in_charge()
        second = self.other(first)
        if second is not None and (second.seat is None or not second.knows or second.living() != first.living()):
            return f"{second} does not know what {first} knows"
        return ""

    def living(self) -> dict[str, tuple[int, int]]:
        """Who is up, as the broker in charge knows it."""
        return self.in_charge()[0].living()


def heal(place: Place) -> None:
    """Nothing is cut between this one and others any more."""
    for other in list(place.cut_from):
        other.cut_from.discard(place)
    place.cut_from.clear()
