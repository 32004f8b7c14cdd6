"""Membership as one member sees it: joining, the beats, who is up, the common end.

One rule: what the broker says is about lives (a member is up or gone with its incarnation) and is numbered, so what
arrives late, twice or out of order changes nothing that is newer.

    state     event            next state
    --------  ---------------  ------------------------------------------------------------
    new       Start            joining   HELLO is sent, and again until it is answered
    joining   WELCOME          up        members are known
    joining   REFUSED          refused
    up        REFUSED          fenced    another process has the name, or this one was declared dead
    up        ShutdownWish     ending    SHUTDOWN is sent, and again until the release
    ending    release          released
    (any)     Departure        left      GOODBYE is sent

`MESSAGES` says which messages are read in which state; one that arrives in another state is late, and ignored.

A member whose broker restarted says HELLO again, with its id, incarnation and life. The new broker knows nobody at
first, so whoever it does not list is kept for a while before it counts as gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from zrpc.clock import earliest
from zrpc.errors import InvalidTransition, ZrpcError
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    BrokerBack,
    BrokerLost,
    Counts,
    CountsWanted,
    Departure,
    Drain,
    Effect,
    Fenced,
    Held,
    Inquiry,
    Joined,
    JoinFailed,
    LinkChange,
    MemberDraining,
    MemberGone,
    MemberUp,
    Released,
    Report,
    Send,
    ShutdownWish,
    Start,
    StopRequested,
    Tick,
    Waiting,
)
from zrpc.protocol.membership import DRAINING
from zrpc.wire.messages import (
    MAX_TOLD,
    MAX_WHY,
    Beat,
    Challenge,
    Gone,
    Goodbye,
    GroupProgress,
    Hello,
    Member,
    Members,
    Refusal,
    Resolve,
    ShutdownReport,
    ShutdownState,
    Stop,
    Welcome,
)

HELLO_INTERVAL: Final = 0.5
"""Seconds until an unanswered HELLO is sent again. A waiting member shows by it that it lives."""
ENDING_INTERVAL: Final = 0.1
"""Seconds between two looks at the counts of a member that waits for the common end; only changes are sent at once."""
RESTART_GRACE: Final = 1.0
"""Seconds, beyond the broker's death timeout, that a restarted broker has to hear of everybody."""

MAX_OVER: Final = 16_384
"""Lives that are remembered to be over; the longest dead are forgotten first."""

MEMBER_STATES: Final = ("up", "ending", "released")

MESSAGES: Final[Mapping[type[Any], tuple[str, ...]]] = {
    Welcome: ("joining", *MEMBER_STATES),
    Refusal: ("joining", *MEMBER_STATES),
    GroupProgress: ("joining",),
    Members: MEMBER_STATES,
    Challenge: ("joining", *MEMBER_STATES),
    ShutdownState: ("ending",),
    Stop: ("joining", *MEMBER_STATES),
    Goodbye: MEMBER_STATES,
}
"""The states in which each message is read."""

COMMANDS: Final[Mapping[type[Any], tuple[str, ...]]] = {
    Start: ("new",),
    Report: MEMBER_STATES,
    Inquiry: MEMBER_STATES,
    Drain: MEMBER_STATES,
    ShutdownWish: ("up", "ending"),
}
"""The states in which the owner may do each thing; in others it is an `InvalidTransition`."""


class Session:
    """One process's membership. `members` and `members_by_id` hold everybody who is up, itself included."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.state = "new"
        self.members: dict[str, Member] = {}
        self.members_by_id: dict[int, Member] = {}
        self.id = -2
        self.incarnation = 0
        self.life = 0
        self.cluster = ""
        self.epoch = 0
        self.sequence = 0
        self.floor = 0
        """No id from here on was given, as far as this member was told."""
        self.standby = ""
        """Where the standby broker is, as far as this member was told."""
        self.heartbeat_interval = HELLO_INTERVAL
        self.connected = True
        self.stopping = False
        self.draining = False
        self._death_timeout = 3.0
        self._broker_lost = False
        self._round = 0
        self._reported: tuple[int, Counts] | None = None
        self._reported_at = 0.0
        self.statistics: Mapping[str, int | float] = {}
        """What the next beats say."""
        self.answers = 0
        """Times that what the broker knows was heard in answer to a question, or as a whole, since the start."""
        self._next_send: float | None = None
        self._next_resolve = 0.0
        self._unconfirmed: dict[int, Member] = {}
        self._unconfirmed_until: float | None = None
        self._over: OrderedDict[tuple[int, int], str] = OrderedDict()  # lives that ended, as far as we were told
        self._returned: dict[tuple[int, int], Gone] = {}  # those of them that a broker lists again
        self._handlers: dict[type[Any], Callable[[Any, float], list[Effect]]] = {
            Welcome: self._on_welcome,
            Refusal: self._on_refusal,
            GroupProgress: self._on_progress,
            Members: self._on_members,
            Challenge: self._on_challenge,
            ShutdownState: self._on_shutdown_state,
            Stop: self._on_stop,
            Goodbye: self._on_goodbye,
            Start: self._on_start,
            Report: self._on_report,
            Inquiry: self._on_inquiry,
            Drain: self._on_drain,
            ShutdownWish: self._on_shutdown_wish,
            Departure: self._on_departure,
            LinkChange: self._on_link_change,
            Tick: self._on_tick,
        }

    def __repr__(self) -> str:
        link = "" if self.connected else " broker lost"
        return (
            f"<Session {self.hello.name} {self.state} id={self.id} incarnation={self.incarnation} "
            f"members={len(self.members)}{link}>"
        )

    def next_deadline(self) -> float | None:
        """When `Tick` is due."""
        return earliest(self._next_send if self.connected else None, self._unconfirmed_until)

    def handle(self, event: object, now: float) -> list[Effect]:
        """Take one event. Raises `InvalidTransition` for a command that the state does not have."""
        if isinstance(event, Arrival):
            message = event.message
            if self.state not in MESSAGES.get(type(message), ()):
                return []  # late: the state has moved on since it was sent
            return self._handlers[type(message)](message, now)
        allowed = COMMANDS.get(type(event))
        if allowed is not None and self.state not in allowed:
            raise InvalidTransition(type(event).__name__, "member", self.state)
        return self._handlers[type(event)](event, now)

    # ------------------------------------------------------------------------------------- what we say

    def _say_hello(self, now: float) -> Send:
        self._next_send = now + self.heartbeat_interval
        return Send(replace(self.hello, floor=self.floor) if self.incarnation else self.hello)

    def _on_start(self, event: Start, now: float) -> list[Effect]:
        self.state = "joining"
        return [self._say_hello(now)]

    def _on_report(self, event: Report, now: float) -> list[Effect]:
        self.statistics = event.statistics
        return [self._beat(now)] if self.connected else []

    def _beat(self, now: float) -> Send:
        if self.state != "ending":
            self._next_send = now + self.heartbeat_interval
        return Send(Beat(self.sequence, self.stopping, dict(self.statistics), self.draining))

    def _on_drain(self, event: Drain, now: float) -> list[Effect]:
        self.draining = True  # every beat says it, so one that is lost does no harm
        return [self._beat(now)] if self.connected else []

    def _on_inquiry(self, event: Inquiry, now: float) -> list[Effect]:
        return [Send(Resolve(self.sequence))]

    def _on_shutdown_wish(self, event: ShutdownWish, now: float) -> list[Effect]:
        self.state = "ending"
        self._next_send = now + ENDING_INTERVAL
        news = (self._round, event.counts)
        if news == self._reported and now < self._reported_at + self.heartbeat_interval:
            return []
        self._reported, self._reported_at = news, now
        counts = event.counts
        return [Send(ShutdownReport(self._round, counts.sent, counts.served, counts.active))]

    def _on_departure(self, event: Departure, now: float) -> list[Effect]:
        # A fenced or refused process has nothing to take leave of: its GOODBYE could only hit another life.
        says = self.state in ("joining", *MEMBER_STATES)
        self.state = "left"
        self._next_send = self._unconfirmed_until = None
        return [Send(Goodbye(event.why))] if says else []

    def _on_link_change(self, event: LinkChange, now: float) -> list[Effect]:
        if event.what == "connected":
            was, self.connected = self.connected, True
            if not was and self.state in ("joining", *MEMBER_STATES):
                return [self._say_hello(now)]
            return []
        self.connected = False
        if self.state in MEMBER_STATES and not self._broker_lost:
            self._broker_lost = True
            return [Announce(BrokerLost(f"the connection was {event.what}"))]
        return []

    def _on_tick(self, event: Tick, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._unconfirmed_until is not None and now >= self._unconfirmed_until:
            effects += self._give_up_unconfirmed()
        effects += self._contradict(now)
        if self._next_send is None or now < self._next_send or not self.connected:
            return effects
        if self.state == "joining" or self._broker_lost:
            effects.append(self._say_hello(now))
        elif self.state == "ending":
            self._next_send = now + ENDING_INTERVAL
            effects.append(Announce(CountsWanted(self._round)))
        elif self.state in MEMBER_STATES:
            effects.append(self._beat(now))
        return effects

    # ------------------------------------------------------------------------------------ what we hear

    def _on_welcome(self, message: Welcome, now: float) -> list[Effect]:
        if message.nonce != self.hello.nonce:
            return []
        if self.state == "joining":
            return self._join(message, now)
        if message.incarnation != self.incarnation:
            return []  # the answer to a HELLO of long ago
        restarted = message.epoch != self.epoch
        effects: list[Effect] = []
        if restarted:
            self.epoch = message.epoch
            self._unconfirmed = {m.id: m for m in self.members.values() if m.id != self.id}
            self._unconfirmed_until = now + message.death_timeout + RESTART_GRACE
        elif message.sequence < self.sequence:
            return []
        self.heartbeat_interval = message.heartbeat_interval
        self._death_timeout = message.death_timeout
        self.sequence = message.sequence
        self.floor = max(self.floor, message.floor)
        self.standby = message.standby
        if self._broker_lost or restarted:
            self._broker_lost = False
            effects.append(Announce(BrokerBack(restarted)))
        effects += self._take_all(message.everybody(), "it was gone when the broker came back")
        return effects + self._contradict(now)

    def _join(self, message: Welcome, now: float) -> list[Effect]:
        self.state = "up"
        self.id, self.incarnation, self.life = message.id, message.incarnation, message.life
        self.cluster, self.epoch, self.sequence = message.cluster, message.epoch, message.sequence
        self.heartbeat_interval, self._death_timeout = message.heartbeat_interval, message.death_timeout
        self.floor, self.standby = message.floor, message.standby
        self.hello = replace(self.hello, id=self.id, incarnation=self.incarnation, life=self.life)
        self._next_send = now + self.heartbeat_interval
        effects: list[Effect] = [Announce(Joined(message))]
        return effects + self._take_all(message.everybody(), "")

    def _on_refusal(self, message: Refusal, now: float) -> list[Effect]:
        if message.nonce not in (0, self.hello.nonce):
            return []
        self._next_send = self._unconfirmed_until = None
        if self.state == "joining":
            self.state = "refused"
            error: ZrpcError = message.to_error()
            return [Announce(JoinFailed(error))]
        self.state = "fenced"
        return [Announce(Fenced(message.message))]

    def _on_progress(self, message: GroupProgress, now: float) -> list[Effect]:
        self.heartbeat_interval = message.heartbeat_interval
        return [Announce(Waiting(message))]

    def _on_challenge(self, message: Challenge, now: float) -> list[Effect]:
        return [self._say_hello(now)]

    def _on_stop(self, message: Stop, now: float) -> list[Effect]:
        if self.stopping:
            return []
        self.stopping = True
        return [Announce(StopRequested(message.why))]

    def _on_goodbye(self, message: Goodbye, now: float) -> list[Effect]:
        """The broker ends. Its successor, if there is one, will challenge us."""
        if self._broker_lost:
            return []
        self._broker_lost = True
        return [Announce(BrokerLost(message.why or "the broker has stopped"))]

    def _on_shutdown_state(self, message: ShutdownState, now: float) -> list[Effect]:
        if message.release:
            self.state = "released"
            self._next_send = now + self.heartbeat_interval
            return [Announce(Released())]
        if message.round > self._round:
            self._round = message.round
            return [Announce(CountsWanted(message.round))]
        return [Announce(Held(message.missing, message.short))] if message.short else []

    def _on_members(self, message: Members, now: float) -> list[Effect]:
        if message.epoch != self.epoch:
            return []
        if message.full:
            if message.sequence < self.sequence:
                return []
            self.sequence, self.standby = message.sequence, message.standby
            return self._take_all(message.everybody(), "the broker does not list it any more") + self._contradict(now)
        self.answers += message.answer
        if message.sequence <= self.sequence:
            return []
        if message.previous > self.sequence:  # something between was lost
            if now < self._next_resolve:
                return []
            self._next_resolve = now + HELLO_INTERVAL
            return [Send(Resolve(self.sequence))]
        self.sequence, self.standby = message.sequence, message.standby
        effects: list[Effect] = []
        for gone in message.gone:
            effects += self._take_gone(gone.id, gone.incarnation, gone.why, gone.cause)
        for member in message.up.members:
            effects += self._take_up(member)
        return effects + self._contradict(now)

    # ------------------------------------------------------------------------------------ who is there

    def _take_all(self, members: tuple[Member, ...], why: str) -> list[Effect]:
        """Make the membership what the broker says it is; while it has restarted, only add to it."""
        self.answers += 1
        self._returned.clear()
        effects: list[Effect] = []
        listed = {member.id: member.incarnation for member in members}
        for known in list(self.members.values()):
            if known.id not in listed and known.id not in self._unconfirmed:
                effects += self._take_gone(known.id, known.incarnation, why)
        for member in members:
            effects += self._take_up(member)
        return effects

    def _take_up(self, member: Member) -> list[Effect]:
        self._unconfirmed.pop(member.id, None)
        self.floor = max(self.floor, member.id + 1)
        known = self.members_by_id.get(member.id)
        if known is not None and known.incarnation == member.incarnation:
            return self._take_change(known, member)
        key = member.id, member.incarnation
        if key in self._over:
            self._returned[key] = Gone(member.name, *key, self._over[key])
            return []
        effects: list[Effect] = []
        # A broker that never heard of the name's earlier life gives the next one another id.
        for before in (known, self.members.get(member.name)):
            if before is not None:
                effects += self._take_gone(before.id, before.incarnation, "its name has another life")
        self.members[member.name] = self.members_by_id[member.id] = member
        if member.id != self.id:
            effects.append(Announce(MemberUp(member)))
        return effects

    def _contradict(self, now: float) -> list[Effect]:
        """Tell a restarted broker which of those that returned to it were declared dead: what they held is given up."""
        if not self._returned or now < self._next_resolve:
            return []
        self._next_resolve = now + HELLO_INTERVAL
        return [Send(Resolve(self.sequence, tuple(self._returned.values())[:MAX_TOLD]))]

    def _take_change(self, known: Member, member: Member) -> list[Effect]:
        """The same life, of which something else may be said now."""
        if member.state == known.state:
            return []
        self.members[member.name] = self.members_by_id[member.id] = member
        return [Announce(MemberDraining(member))] if member.state == DRAINING and member.id != self.id else []

    def _take_gone(self, member_id: int, incarnation: int, why: str, cause: str = "died") -> list[Effect]:
        self._returned.pop((member_id, incarnation), None)
        known = self.members_by_id.get(member_id)
        if known is None or known.incarnation != incarnation or member_id == self.id:
            return []  # of ourselves we hear by REFUSED, if it is true
        self._unconfirmed.pop(member_id, None)
        self._over[member_id, incarnation] = why[:MAX_WHY]
        if len(self._over) > MAX_OVER:
            self._over.popitem(last=False)
        del self.members_by_id[member_id]
        if self.members.get(known.name) is known:
            del self.members[known.name]
        return [Announce(MemberGone(known, why, cause))]

    def _give_up_unconfirmed(self) -> list[Effect]:
        effects: list[Effect] = []
        for member in list(self._unconfirmed.values()):
            effects += self._take_gone(member.id, member.incarnation, "it did not return to the restarted broker")
        self._unconfirmed.clear()
        self._unconfirmed_until = None
        return effects
