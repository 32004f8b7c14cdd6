"""A broker's place in a pair: in charge, or standing by; and how it comes from one to the other.

    state         event                                           next state
    ------------  ----------------------------------------------  ------------------------------------------
    standing by   the primary is lost, to members too             in charge, with a higher epoch
    in charge     another broker is, with a higher epoch          standing by, for that one
    standing by   another broker is in charge, with a higher one  standing by, for that one

One rule: of two brokers in charge the one with the higher epoch stays; epochs are never equal, or the address decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zrpc.clock import earliest
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Effect,
    Expectation,
    PeerArrival,
    PeerChange,
    RouteLoss,
    Seek,
    Send,
    SteppedDown,
    StopRequested,
    Tell,
    TookOver,
)
from zrpc.protocol.heritage import inherit
from zrpc.protocol.membership import INCARNATION_SHIFT, RegistryOptions
from zrpc.protocol.primary import Primary
from zrpc.protocol.registry import Registry
from zrpc.protocol.standby import AHEAD_MS, Standby
from zrpc.wire.messages import Challenge, Goodbye, Member, Message, Stop
from zrpc.wire.succession import Elsewhere, Follow, Replica, Vote


class Seat:
    """One broker. `epoch_ms`: the wall clock at this start, milliseconds. `follows`: the address of the broker to stand by
    for; empty: be in charge. `scalable`: roles of which tools may ask for more or fewer workers.

    `address` is where others find this broker; whoever drives it sets it before the first event.
    """

    def __init__(
        self,
        cluster: str,
        epoch_ms: int,
        now: float,
        options: RegistryOptions | None = None,
        follows: str = "",
        scalable: Iterable[str] = (),
    ) -> None:
        self.cluster = cluster
        self.address = ""
        self._options = options or RegistryOptions()
        self._scalable = frozenset(scalable)
        self._epoch_ms = epoch_ms
        self._began = now
        self._expected: tuple[str, ...] = ()
        self._linked = False
        self._rival = ""
        """Whom we took over from, and tell so until it follows us."""
        self._rival_at: float | None = None
        self.primary: Primary | None = None
        self.standby: Standby | None = None
        if follows:
            self.standby = Standby(follows, "", self._options, now)
        else:
            self.primary = Primary(self._found(epoch_ms, now, self._options), now)

    def __repr__(self) -> str:
        return f"<Seat {self.address} {self.primary or self.standby!r}>"

    def _found(self, epoch_ms: int, now: float, options: RegistryOptions) -> Registry:
        registry = Registry(self.cluster, epoch_ms, now, options)
        registry.scalable = self._scalable
        return registry

    @property
    def registry(self) -> Registry | None:
        """The members, while this broker is in charge."""
        return None if self.primary is None else self.primary.registry

    @property
    def epoch(self) -> int:
        """The epoch of this broker, or of the one that it stands by for; 0: not known yet."""
        if self.primary is not None:
            return self.primary.epoch
        assert self.standby is not None
        return self.standby.epoch

    @property
    def other(self) -> str:
        """The broker that this one is to be connected to; empty: to none."""
        return self._rival if self.standby is None else self.standby.primary

    def members(self) -> list[Member]:
        """The living, as the broker in charge knows them."""
        registry = self.registry
        return [] if registry is None else [record.member() for record in registry.book.living()]

    def routes(self) -> tuple[bytes, ...]:
        """The routes of all members."""
        registry = self.registry
        return () if registry is None else tuple(registry.book.by_route)

    def next_deadline(self) -> float | None:
        """When `Tick` is due."""
        if self.primary is not None:
            return earliest(self.primary.next_deadline(), self._rival_at)
        assert self.standby is not None
        return self.standby.next_deadline()

    def handle(self, event: object, now: float) -> list[Effect]:
        """Take an event of a registry, or one of the other broker."""
        if isinstance(event, PeerArrival):
            return self._on_peer(event.message, now)
        if isinstance(event, PeerChange):
            return self._on_peer_change(event.what, now)
        if isinstance(event, Expectation):
            self._expected = event.names
        if isinstance(event, Arrival) and isinstance(event.message, Follow) and event.message.in_charge:
            return self._on_claim(event.message, event.route, now)
        if self.primary is not None:
            if isinstance(event, Arrival) and isinstance(event.message, Vote) and event.message.epoch > self.epoch:
                return self._on_late_news(event, event.message, now)
            if isinstance(event, Arrival) and isinstance(event.message, Follow) and event.message.epoch > self.epoch:
                self._begin_above(event.message.epoch, now)
            effects = self.primary.handle(event, now)
            return effects + self._tell_rival(now)
        if isinstance(event, Arrival):
            effects = self._on_stranger(event, now)
        elif isinstance(event, RouteLoss):
            self._standing().on_loss(event.route)
            effects = []
        else:
            effects = []
        return effects + self._decide(now)

    # ------------------------------------------------------------------------------------ standing by

    def _on_stranger(self, event: Arrival, now: float) -> list[Effect]:
        standby = self._standing()
        message = event.message
        if isinstance(message, Vote):
            standby.on_vote((event.sender, event.incarnation), message, event.route, now)
            return []
        if isinstance(message, Follow):
            standby.note_epoch(message.epoch)
        return [] if isinstance(message, Goodbye) else [Send(standby.elsewhere(), event.route)]

    def _standing(self) -> Standby:
        standby = self.standby
        assert standby is not None
        standby.me = self.address
        return standby

    def _decide(self, now: float) -> list[Effect]:
        standby = self._standing()
        effects = standby.tick(now)
        why = standby.verdict(now)
        return self._take_over(why, now) if why else effects

    def _take_over(self, why: str, now: float) -> list[Effect]:
        standby = self._standing()
        wall_ms = self._epoch_ms + int((now - self._began) * 1000)
        registry = self._found(standby.epoch_ms(wall_ms), now, standby.options.following())
        heirs = standby.heirs(now)
        if standby.is_synced:
            inherit(registry, standby.entries.values(), standby.floor, now)
        else:
            registry.book.begin_unknowing()
        self.primary, self.standby = Primary(registry, now, heirs), None
        self._rival, self._rival_at = standby.primary, now
        effects: list[Effect] = [Announce(TookOver(why))]
        if self._expected:
            effects += self.primary.handle(Expectation(self._expected), now)
        effects += [Send(Challenge(registry.epoch), route) for route in standby.voters()]
        return effects + self._tell_rival(now)

    # -------------------------------------------------------------------------------------- in charge

    def _tell_rival(self, now: float) -> list[Effect]:
        """Whoever was in charge before is to hear of us, if it still lives, until it stands by for us."""
        if self._rival_at is None or now < self._rival_at:
            return []
        assert self.primary is not None
        pair = self.primary.pair
        if pair is not None and pair.address == self._rival and pair.route is not None:
            self._rival, self._rival_at = "", None
            return [Seek("")]
        self._rival_at = now + self._options.heartbeat_interval
        return [Tell(Follow(self.address, self.epoch, True))] if self._linked else []

    def _on_late_news(self, event: Arrival, vote: Vote, now: float) -> list[Effect]:
        """A member has lost a broker that was in charge after us: it took over while we were stopped."""
        assert self.primary is not None
        pair = self.primary.pair
        other = self._rival if pair is None else pair.address
        if other:
            return self._step_down(other, vote.epoch, now)
        self._begin_above(vote.epoch, now)
        return self.primary.handle(event, now)

    def _begin_above(self, epoch: int, now: float) -> None:
        """Who follows us has known a broker with a higher epoch, that is no more: this host's clock is behind. Its members
        return to us as to a restarted broker."""
        epoch_ms = (epoch >> INCARNATION_SHIFT) + AHEAD_MS
        self.primary = Primary(self._found(epoch_ms, now, self._options.following()), now)
        if self._expected:
            self.primary.handle(Expectation(self._expected), now)

    def _on_claim(self, message: Follow, route: bytes, now: float) -> list[Effect]:
        """Another broker says that it is in charge."""
        is_higher = (message.epoch, message.address) > (self.epoch, self.address)
        if self.primary is not None:
            if is_higher:
                return self._step_down(message.address, message.epoch, now)
            return self.primary.handle(Arrival(Follow(message.address), route), now)  # it hears of our higher epoch
        standby = self._standing()
        if message.address != standby.primary and message.epoch > standby.epoch:
            return self._stand_by(message.address, message.epoch, now)
        return []

    def _step_down(self, address: str, epoch: int, now: float) -> list[Effect]:
        told = Broadcast(Elsewhere(address, epoch), self.routes())
        return [Announce(SteppedDown(address)), told, *self._stand_by(address, epoch, now)]

    def _stand_by(self, address: str, epoch: int, now: float) -> list[Effect]:
        self.primary, self._rival, self._rival_at = None, "", None
        self.standby = Standby(address, self.address, self._options, now, epoch)
        self._linked = False
        return [Seek(address)]

    # -------------------------------------------------------------------------------- the other broker

    def _on_peer_change(self, what: str, now: float) -> list[Effect]:
        self._linked = what == "connected"
        if self.primary is not None:
            if self._linked:
                self._rival_at = None if self._rival_at is None else now
            return self._tell_rival(now)
        return [*self._standing().on_link(what, now), *self._decide(now)]

    def _on_peer(self, message: Message, now: float) -> list[Effect]:
        if self.primary is not None:
            if isinstance(message, Replica) and message.epoch > self.epoch:
                return self._step_down(self._rival, message.epoch, now)
            return self._tell_rival(now)
        standby = self._standing()
        effects: list[Effect] = []
        if isinstance(message, Replica):
            effects += standby.on_replica(message, now)
        elif isinstance(message, Elsewhere):
            if message.address not in ("", self.address, standby.primary) and message.epoch > standby.epoch:
                return self._stand_by(message.address, message.epoch, now)
            standby.on_elsewhere(message, now)
        elif isinstance(message, Stop):
            effects.append(Announce(StopRequested(message.why)))
        return effects + self._decide(now)

    def describe(self, now: float) -> dict[str, Any]:
        """The cluster as tools see it: plain values."""
        if self.primary is not None:
            return {**self.primary.registry.describe(now), **self.primary.describe(now)}
        standby = self._standing()
        return {"cluster": self.cluster, "missing": [], "refused_members": {}, **standby.describe(now)}
