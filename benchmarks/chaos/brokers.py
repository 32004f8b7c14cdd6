"""The brokers of the chaos: one in charge and a standby, and all that is done to them.

One rule: they are started as `zrpc launch` starts them: the first in charge, its standby after it, and whichever ends once
more at its address, to stand by for the other. Only where the standby has left in good order is a broker that ends
started again to be in charge: that is a plain restart.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos.load import PROBE
from benchmarks.chaos.namespaces import Namespaces
from benchmarks.chaos.outages import Outages
from benchmarks.chaos.processes import BROKER_NODE, Node

BROKER_START = 150
SETTLED = 2.0
"""Seconds for which a standby has been connected when it is held to be ready."""
AWAY = (0.1, 2.0, 8.0)
"""Seconds until a killed broker is started again: less and more than a take-over takes. A launcher needs the first."""


class Seat:
    """One of the two: its place, its process, and what that has said of itself."""

    def __init__(self, name: str, place: int, address: str) -> None:
        self.name = name
        self.place = place
        self.address = address
        self.node: Node | None = None
        self.heard: deque[tuple[Node, dict[str, Any]]] = deque()
        self.is_in_charge = False
        self.ready_since: float | None = None
        """Since when the other one stands by for it."""
        self.is_wanted = True
        self.is_ended = False
        """Whether its process was ended on purpose."""
        self.is_cut = False

    @property
    def is_up(self) -> bool:
        """Whether it runs, and can be reached."""
        node = self.node
        return node is not None and node.is_alive() and not node.is_frozen and not self.is_cut

    def forget(self) -> None:
        """Its process is gone."""
        self.is_in_charge, self.ready_since = False, None


class Brokers:
    """The pair, or a single one where `standby` is False."""

    def __init__(
        self,
        folder: Path,
        key: str,
        namespaces: Namespaces | None,
        places: tuple[int, int],
        chance: random.Random,
        in_a_while: Callable[[float, Callable[[], None]], None],
        workers: int,
        standby: bool,
        tell: Callable[[str], None],
    ) -> None:
        self.faults: Counter[str] = Counter()
        self.problems: list[str] = []
        self.lives: deque[tuple[str, list[int]]] = deque()
        """Names of newcomers, with the id, life and incarnation that they were given."""
        self.outages = Outages(workers, self.problems.append)
        self._folder = folder
        self._key = key
        self._namespaces = namespaces
        self._chance = chance
        self._in_a_while = in_a_while
        self._tell = tell
        self._probes = 0
        self._is_parted = False
        hosts = ["127.0.0.1"] * 2 if namespaces is None else [namespaces.host(place) for place in places]
        self.seats = [Seat("broker-a", places[0], f"tcp://{hosts[0]}:0")]
        self._start_first(self.seats[0], "")
        if standby:
            self.seats.append(Seat("broker-b", places[1], f"tcp://{hosts[1]}:0"))
            self._start_first(self.seats[1], self.seats[0].address)
        self._answers: deque[dict[str, Any]] = deque()
        command = [*self._command(0), *BROKER_NODE, "probe", self.addresses, key]
        self._probe = Node("probe", 0, command, str(folder / "probe.log"), self._hear_probe)

    @property
    def addresses(self) -> str:
        return ",".join(seat.address for seat in self.seats)

    # --------------------------------------------------------------------------------------- processes

    def _command(self, place: int) -> list[str]:
        return [] if self._namespaces is None else self._namespaces.command(place)

    def _start_first(self, seat: Seat, follows: str) -> None:
        self._start(seat, follows, "first")
        assert seat.node is not None
        said = seat.node.wait_for("broker", BROKER_START)
        if said is None:
            self.problems.append(f"{seat.name} did not start")
        else:
            seat.address = said["broker"]

    def _start(self, seat: Seat, follows: str, which: str = "next") -> None:
        self._tell(f"{seat.name} starts, {which}, standing by for {follows or 'nobody'}")
        command = [*self._command(seat.place), *BROKER_NODE, "serve", seat.address, self._key, which]
        command += [follows] if follows else []
        seat.forget()
        seat.is_wanted = True

        seat.is_ended = False
        log = str(self._folder / f"{seat.name}.log")
        seat.node = Node(seat.name, seat.place, command, log, lambda node, message: seat.heard.append((node, message)))

    def _hear_probe(self, node: Node, message: dict[str, Any]) -> None:
        self._answers.append(message)

    def _start_again(self, seat: Seat) -> None:
        """As a launcher does: to stand by for the other one, if there is one that has not left."""
        if seat.node is not None and seat.node.is_alive():
            return
        other = self.other(seat)
        self._start(seat, other.address if other is not None and other.is_wanted else "")

    def other(self, seat: Seat) -> Seat | None:
        return next((one for one in self.seats if one is not seat), None)

    def in_charge(self) -> Seat | None:
        """Whoever says so, and runs."""
        return next((seat for seat in self.seats if seat.is_in_charge and seat.is_up), None)

    # ------------------------------------------------------------------------------------ what they say

    def look(self) -> None:
        """Take what brokers and newcomers have said."""
        for seat in self.seats:
            while seat.heard:
                node, message = seat.heard.popleft()
                if node is seat.node:
                    self._take(seat, message)
            if seat.node is not None and not seat.node.is_alive():
                if not seat.is_ended:
                    self.problems.append(f"{seat.name} has ended by itself, with {seat.node.process.returncode}")
                    self._in_a_while(AWAY[0], lambda seat=seat: self._start_again(seat))
                seat.is_ended = True
                seat.forget()
        while self._answers:
            message = self._answers.popleft()
            self._tell(f"newcomer: {message}")
            self.outages.note_answer(message)
            if "life" in message:
                self.lives.append((message["probe"], message["life"]))

    def _take(self, seat: Seat, message: dict[str, Any]) -> None:
        if "report" not in message:
            self._tell(f"{seat.name}: {message}")
        if "broker" in message:
            seat.is_in_charge = message["in charge"]
        news = message.get("news")
        if news == "TookOver":
            seat.is_in_charge = True
            self.faults["taken over"] += 1
            self.outages.note_take_over(message["at"])
        elif news == "SteppedDown":
            seat.is_in_charge, seat.ready_since = False, None
            self.faults["stepped down"] += 1
        elif news == "StandbyJoined":
            seat.ready_since = message["at"]
        elif news == "StandbyLost":
            seat.ready_since = None

    # ------------------------------------------------------------------------------------------- faults

    def misbehave(self, away: int) -> None:
        """Do something to one of them. `away`: workers that are stopped or cut off."""
        first = self.in_charge()
        if first is None:
            return
        second = self.other(first)
        kinds: list[Callable[[Seat, int], None]] = [self.kill]
        if second is not None:
            kinds += [self.kill, self.stop, self.stop, self.harm_standby, self.kill_both, self.restart_alone]
            if self._namespaces is not None:
                kinds += [self.cut, self.part]
        self._chance.choice(kinds)(first, away)

    def _begin(self, what: str, seat: Seat, away: int, can_take_over: bool = True) -> None:
        """The broker in charge is about to be lost: send a newcomer."""
        now = time.monotonic()
        second = self.other(seat)
        is_ready = can_take_over and second is not None and second.is_up and not self._is_parted
        is_ready = is_ready and seat.ready_since is not None and now >= seat.ready_since + SETTLED
        self.faults[what] += 1
        self.outages.disturb()
        self._probes += 1
        name = f"{PROBE}{self._probes}"
        self.outages.begin(what, name, now, is_ready, away)
        self._in_a_while(0.0, lambda: self._probe.tell(f"join {name}"))  # when it has been done

    def kill(self, seat: Seat, away: int) -> None:
        self._begin("broker killed", seat, away)
        self._kill(seat, self._chance.choice(AWAY))

    def _kill(self, seat: Seat, seconds: float) -> None:
        assert seat.node is not None
        self._tell(f"{seat.name} is killed")
        seat.is_ended = True
        seat.node.signal(signal.SIGKILL)
        seat.node.process.wait()
        seat.forget()
        self._in_a_while(seconds, lambda: self._start_again(seat))

    def stop(self, seat: Seat, away: int) -> None:
        self._begin("broker stopped", seat, away)
        self._stop(seat, self._chance.choice((0.3, 1.5, 5.0, 8.0)))

    def _stop(self, seat: Seat, seconds: float) -> None:
        node = seat.node
        assert node is not None
        node.is_frozen = True
        node.signal(signal.SIGSTOP)
        self._tell(f"{seat.name} is stopped for {seconds:g} s")

        def go_on() -> None:
            node.is_frozen = False
            node.signal(signal.SIGCONT)

        self._in_a_while(seconds, go_on)

    def cut(self, seat: Seat, away: int) -> None:
        self._begin("broker cut off", seat, away)
        self._cut(seat, self._chance.choice((0.5, 3.0, 6.0)))

    def _cut(self, seat: Seat, seconds: float) -> None:
        namespaces = self._namespaces
        assert namespaces is not None
        if seat.is_cut:
            return
        seat.is_cut = True
        self._tell(f"{seat.name} is cut off for {seconds:g} s")
        namespaces.cut(seat.place)

        def heal() -> None:
            seat.is_cut = False
            namespaces.heal(seat.place)

        self._in_a_while(seconds, heal)

    def part(self, seat: Seat, away: int) -> None:
        """The two cannot reach each other, and all workers reach both."""
        namespaces, second = self._namespaces, self.other(seat)
        assert namespaces is not None
        if second is None or self._is_parted:
            return
        self._begin("brokers parted", seat, away, can_take_over=False)
        one, two = seat.place, second.place
        self._is_parted = True
        self._tell("the brokers are parted")
        namespaces.part(one, two)

        def rejoin() -> None:
            self._is_parted = False
            self._tell("the brokers are rejoined")
            namespaces.rejoin(one, two)

        self._in_a_while(self._chance.choice((1.0, 4.0, 8.0)), rejoin)

    def harm_standby(self, seat: Seat, away: int) -> None:
        """The one that stands by is lost."""
        second = self.other(seat)
        if second is None or not second.is_up:
            return
        self.outages.disturb()
        whats: list[Callable[[Seat, float], None]] = [self._kill, self._stop]
        whats += [self._cut] if self._namespaces is not None else []
        what = self._chance.choice(whats)
        self.faults[f"standby: {what.__name__.strip('_')}"] += 1
        what(second, self._chance.choice((0.3, 2.0, 6.0)))

    def kill_both(self, seat: Seat, away: int) -> None:
        second = self.other(seat)
        if second is None or not second.is_up:
            return
        self._begin("both brokers killed", seat, away, can_take_over=False)
        self._kill(seat, self._chance.choice(AWAY))
        self._kill(second, self._chance.choice(AWAY))

    def restart_alone(self, seat: Seat, away: int) -> None:
        """The standby leaves in good order; then the other one is killed, and started again to be in charge."""
        second = self.other(seat)
        if second is None or not second.is_up:
            return
        assert second.node is not None
        self.outages.disturb()
        self.faults["standby left"] += 1
        second.is_wanted, second.is_ended = False, True
        second.node.tell("exit")
        self._tell(f"{second.name} leaves")

        def kill() -> None:
            if seat.is_up and seat.is_in_charge and not second.is_wanted:
                self._begin("broker killed, without a standby", seat, 0, can_take_over=False)
                self._kill(seat, self._chance.choice((0.2, 1.0, 3.0)))

        self._in_a_while(1.5, kill)
        self._in_a_while(9.0, lambda: self._start_again(second))

    # ---------------------------------------------------------------------------------------------- ends

    def keep_up(self) -> None:
        """Start again whoever has ended without being told to."""
        for seat in self.seats:
            if seat.node is not None and not seat.node.is_alive():
                self._start_again(seat)

    def is_settled(self) -> bool:
        """Whether one is in charge, and the other one stands by for it, and nobody waits to be let in."""
        self.look()
        first = self.in_charge()
        if first is None or not self.outages.is_calm():
            return False
        return self.other(first) is None or first.ready_since is not None

    def check(self, workers: set[str]) -> None:
        """In the end one is in charge, and knows all workers; the other one knows them too."""
        reports = []
        for seat in self.seats:
            assert seat.node is not None
            seat.node.tell("report")
            answer = seat.node.wait_for("report", 20)
            if answer is None:
                self.problems.append(f"{seat.name} does not report")
            else:
                reports.append(answer["report"])
        if sum(report.get("is_in_charge", True) for report in reports) != 1:
            self.problems.append(f"not one broker is in charge: {reports}")
        for report in reports:
            known = {name for name in report["members"] if not name.startswith(PROBE)}
            if known != workers:
                self.problems.append(f"a broker knows {sorted(known)}, there are {sorted(workers)}")
        if len({tuple(sorted(report["members"].items())) for report in reports}) > 1:
            self.problems.append(f"the brokers do not know the same: {[report['members'] for report in reports]}")

    def end(self) -> None:
        self._probe.end(10)
        for seat in reversed(self.seats):  # the standby first, or it takes over
            if seat.node is not None:
                seat.node.end(10)

    def nodes(self) -> list[Node]:
        return [self._probe, *(seat.node for seat in self.seats if seat.node is not None)]
