"""What goes into the membership's machines and what comes out of them.

One rule: events are nouns and say what happened; effects are verbs and say what is to be done; news is what the
driver's owner wants to hear. None of them does anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zrpc.errors import ZrpcError
from zrpc.wire.messages import GroupProgress, Member, Message, Welcome

# ---------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Arrival:
    """A control message came in. `route` leads back to its connection (empty on the member's side)."""

    message: Message
    route: bytes = b""
    sender: int = -2
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class RouteLoss:
    """A connection to the broker has closed."""

    route: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """Whoever started the process of worker `name` saw it end. `pid` 0: whichever process has the name."""

    name: str
    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """These names will come; members that wait for the group wait for all of them. Ids follow the order."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopDemand:
    """Somebody wants these workers to stop; None: all of them."""

    names: tuple[str, ...] | None
    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: a deadline may be due."""


@dataclass(frozen=True, slots=True)
class LinkChange:
    """What happened to the member's connection: 'connected', 'disconnected', 'refused' or 'denied'."""

    what: str


@dataclass(frozen=True, slots=True)
class LineArrival:
    """A message came to a member from the broker at `address`, one of those that it speaks with."""

    address: str
    message: Message


@dataclass(frozen=True, slots=True)
class LineChange:
    """As `LinkChange`, of the connection with the broker at `address`."""

    address: str
    what: str


@dataclass(frozen=True, slots=True)
class PeerArrival:
    """A message came to a broker from the other one, which it has connected to."""

    message: Message


@dataclass(frozen=True, slots=True)
class PeerChange:
    """As `LinkChange`, of a broker's connection to the other one."""

    what: str


@dataclass(frozen=True, slots=True)
class Start:
    """The member wants to join."""


@dataclass(frozen=True, slots=True)
class Report:
    """The member has new statistics; they go to the broker now."""

    statistics: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls of a member that wants to end: sent and served since it joined, and active now (running here, or made from
    here and not yet replied to)."""

    sent: int = 0
    served: int = 0
    active: int = 0


@dataclass(frozen=True, slots=True)
class ShutdownWish:
    """The member wants to end together with its group, or has new counts while it waits for that."""

    counts: Counts


@dataclass(frozen=True, slots=True)
class Inquiry:
    """The member wants the whole membership again."""


@dataclass(frozen=True, slots=True)
class Drain:
    """The member takes no new work from now on; it will leave."""


@dataclass(frozen=True, slots=True)
class Departure:
    """The member leaves now."""

    why: str = ""


# --------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message along a route (the broker), or to the broker (a member: the route is empty)."""

    message: Message
    route: bytes = b""
    incarnation: int = 0
    """The life of the receiver that it is for; 0 any."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send one message along many routes: it is to be encoded once."""

    message: Message
    routes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A member sends a message to the brokers at these addresses."""

    message: Message
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenLine:
    """A member connects to the broker at `address`."""

    address: str


@dataclass(frozen=True, slots=True)
class CloseLine:
    """A member drops its connection to the broker at `address`."""

    address: str


@dataclass(frozen=True, slots=True)
class Tell:
    """A broker sends a message to the other one, along the connection that it made."""

    message: Message


@dataclass(frozen=True, slots=True)
class Seek:
    """A broker connects to the other one at `address`, instead of whomever it was connected to; empty: to nobody."""

    address: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the owner of the driver."""

    news: News


Effect = Send | Broadcast | Announce | Dispatch | OpenLine | CloseLine | Tell | Seek


# ------------------------------------------------------------------------------------------------ news


@dataclass(frozen=True, slots=True)
class Joined:
    """This process is a member now."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class JoinFailed:
    """The broker does not take this process."""

    error: ZrpcError


@dataclass(frozen=True, slots=True)
class Waiting:
    """The broker knows this process; its group is not complete yet."""

    progress: GroupProgress


@dataclass(frozen=True, slots=True)
class MemberUp:
    """A worker can be called."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberGone:
    """A worker's life is over."""

    member: Member
    why: str
    cause: str = "died"
    """'died' or 'left'."""


@dataclass(frozen=True, slots=True)
class MemberDraining:
    """A worker finishes what it has begun and takes no new work; it will leave."""

    member: Member


@dataclass(frozen=True, slots=True)
class GroupFailed:
    """On the broker: a strict static group does not form, because one of its members was refused. `told`: how many
    processes have been told so far."""

    error: ZrpcError
    told: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants this worker to stop (on the broker: asked `names` to stop, None for all)."""

    why: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """On the broker: somebody wants `count` workers of a role."""

    role: str
    count: int


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """On the broker: a process was not let in, or a life that is over was told so."""

    name: str
    error: ZrpcError


@dataclass(frozen=True, slots=True)
class TookOver:
    """On the broker: it stood by, and is in charge now."""

    why: str


@dataclass(frozen=True, slots=True)
class SteppedDown:
    """On the broker: it was in charge, and stands by for the broker at `address` now."""

    address: str


@dataclass(frozen=True, slots=True)
class StandbyJoined:
    """On the broker: another one at `address` stands by for it."""

    address: str


@dataclass(frozen=True, slots=True)
class StandbyLost:
    """On the broker: the one that stood by is not connected any more. `has_left`: it said so."""

    address: str
    has_left: bool


@dataclass(frozen=True, slots=True)
class Fenced:
    """This process was declared dead, or its name has a newer life: it must not act as a member any more."""

    why: str


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The broker is not connected. Calls between workers go on."""

    why: str


@dataclass(frozen=True, slots=True)
class BrokerBack:
    """The broker knows this member again; `restarted`: it is another run of it."""

    restarted: bool


@dataclass(frozen=True, slots=True)
class CountsWanted:
    """The broker wants fresh counts for the common end: answer with a `ShutdownWish`."""

    round: int


@dataclass(frozen=True, slots=True)
class Held:
    """The common end waits: for members that have not asked to end (`missing`, `short` in all) or for their calls."""

    missing: tuple[str, ...] = field(default=())
    short: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """All of the group want to end and no call is under way: this member may go."""


News = (
    Joined
    | JoinFailed
    | Waiting
    | MemberUp
    | MemberGone
    | MemberDraining
    | GroupFailed
    | StopRequested
    | ScaleRequested
    | PeerRefused
    | Fenced
    | TookOver
    | SteppedDown
    | StandbyJoined
    | StandbyLost
    | BrokerLost
    | BrokerBack
    | CountsWanted
    | Held
    | Released
)
