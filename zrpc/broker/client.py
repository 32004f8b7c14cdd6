"""A member's connection to the broker: it joins, then is driven by whoever receives for the process.

One rule: the session decides under the lock, and everything it decided is done outside it; no thread is started here.

After `join`, the driver receives from `link` (the connections to one broker or more) and from `watch` (which tells of lost
and new ones), hands over what came with `on_frames` and `on_link_event` (or calls `on_readable`, which receives itself),
calls `on_timer` at `next_deadline()`, and acts on the news that these return.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from zrpc.broker.lines import Lines, split_addresses
from zrpc.broker.reach import Reach
from zrpc.clock import Clock, earliest, monotonic, time_left
from zrpc.errors import (
    BrokerUnreachable,
    FrameError,
    GroupTimeout,
    InvalidTransition,
    JoinRefused,
    Unavailable,
    ZrpcError,
)
from zrpc.protocol.allegiance import Allegiance
from zrpc.protocol.effects import (
    Announce,
    CloseLine,
    Counts,
    CountsWanted,
    Departure,
    Dispatch,
    Drain,
    Effect,
    Inquiry,
    Joined,
    JoinFailed,
    LineArrival,
    LineChange,
    News,
    OpenLine,
    Report,
    ShutdownWish,
    Start,
    StopRequested,
    Tick,
    Waiting,
)
from zrpc.protocol.session import MEMBER_STATES, Session
from zrpc.transport.base import Frames, Transport
from zrpc.transport.poller import Poller
from zrpc.wire.envelope import unpack
from zrpc.wire.limits import MIB, Limits
from zrpc.wire.messages import GroupProgress, Hello, Member, Welcome, read, seal
from zrpc.wire.succession import MEMBER_READS

CLIENT_LIMITS: Final = Limits(message_bytes=64 * MIB, header_bytes=64 * 1024, buffers=0, code_bytes=0)
WHY_SILENT: Final[Mapping[str, str]] = {
    "": "no answer",
    "connected": "it took the connection and did not answer",
    "disconnected": "the connection was lost",
    "refused": "nobody listens there",
    "standby": "only a standby broker answered, which is not in charge",
    "denied": "the handshake was denied: this process has another key than the broker",
}

logger = logging.getLogger(__name__)


def _no_counts() -> Counts:
    return Counts()


class BrokerClient:
    """One process's membership. `hello` says who it is; its nonce must be random. `address` may be several, with commas
    between: whichever broker is in charge answers.

    `statistics` is asked for the numbers of each beat. `wake` is called, from any thread, when the driver must call
    `on_timer` soon although nothing became readable. `patience`: joining gives up when nobody has listened at the address
    for so many seconds; None: it goes on until its deadline. Look-ups in `members_by_name` and `members_by_id` are safe
    from any thread; take `members()` to go through all.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        hello: Hello,
        *,
        statistics: Callable[[], Mapping[str, int | float]] | None = None,
        wake: Callable[[], None] | None = None,
        clock: Clock = monotonic,
        patience: float | None = None,
    ) -> None:
        self.address = address
        self._patience = patience
        self._clock = clock
        self._wake = wake
        self._statistics = statistics
        self._counts: Callable[[], Counts] = _no_counts
        addresses = split_addresses(address)
        self._session = Session(hello)
        self._allegiance = Allegiance(self._session, addresses)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._is_undrained = False
        self._is_closed = False
        self.unreadable = 0
        """Messages from the broker that could not be read."""
        self.link = Lines(transport, addresses)
        self._reach = Reach(self.link.addresses)
        self.watch = self.link.watch

    def __repr__(self) -> str:
        return f"<BrokerClient {self.address} {self._session!r}>"

    # ------------------------------------------------------------------------------------------ who we are

    @property
    def id(self) -> int:
        return self._session.id

    @property
    def incarnation(self) -> int:
        return self._session.incarnation

    @property
    def life(self) -> int:
        return self._session.life

    @property
    def cluster(self) -> str:
        return self._session.cluster

    @property
    def state(self) -> str:
        return self._session.state

    @property
    def broker(self) -> str:
        """The address of the broker that this process speaks with; empty before there is one."""
        return self._allegiance.current

    @property
    def is_connected(self) -> bool:
        return self._session.connected

    @property
    def members_by_name(self) -> Mapping[str, Member]:
        return self._session.members

    @property
    def members_by_id(self) -> Mapping[int, Member]:
        return self._session.members_by_id

    def members(self) -> list[Member]:
        """Everybody who is up, this process included."""
        with self._lock:
            return list(self._session.members.values())

    # --------------------------------------------------------------------------------------------- joining

    def join(self, deadline: float | None, on_progress: Callable[[GroupProgress], None] | None = None) -> Welcome:
        """Become a member; blocks until the group is complete. `deadline` is on the client's clock.

        `on_progress` is told who is missing. Raises `BrokerUnreachable`, `GroupTimeout` at the deadline, `NameTaken`,
        `InvalidName`, `JoinRefused` or `VersionMismatch`; the client is closed then.
        """
        poller = Poller()
        try:
            poller.add(self.link)
            poller.add(self.watch)
            return self._join(poller, deadline, on_progress)
        except BaseException:
            self.leave("it gave up joining")
            self.close()
            raise
        finally:
            poller.close()

    def _join(
        self, poller: Poller, deadline: float | None, on_progress: Callable[[GroupProgress], None] | None
    ) -> Welcome:
        began = self._clock()
        last: GroupProgress | None = None
        news = self._feed(Start(), began)
        while True:
            for item in news:
                if isinstance(item, Joined):
                    self._is_undrained = True  # whoever drives next must look for what came with the welcome
                    return item.welcome
                if isinstance(item, JoinFailed):
                    raise item.error
                if isinstance(item, StopRequested):
                    raise JoinRefused(f"this worker was asked to stop while it joined: {item.why or 'no reason given'}")
                if isinstance(item, Waiting):
                    last = item.progress
                    if on_progress is not None:
                        on_progress(last)
            now = self._clock()
            self._check_patience(began, now, deadline, last)
            if not self._is_undrained:
                limits = (deadline, self.next_deadline(), self._denial_deadline(), self._patience_deadline())
                poller.wait(time_left(earliest(*limits), now))
            news = self._pump(self._clock(), strict=True)

    def _denial_deadline(self) -> float | None:
        return self._reach.denied_until()

    def _patience_deadline(self) -> float | None:
        lost_at = self._reach.lost_since()
        return None if self._patience is None or lost_at is None else lost_at + self._patience

    def _check_patience(self, began: float, now: float, deadline: float | None, last: GroupProgress | None) -> None:
        """Raise when it is time to give up."""
        denied = self._denial_deadline()
        given_up = self._patience_deadline()
        if all(limit is None or now < limit for limit in (deadline, denied, given_up)):
            return
        if last is None or denied is not None or given_up is not None:
            raise BrokerUnreachable(self.address, now - began, WHY_SILENT[self._reach.last])
        what = f"waiting for the group of worker {self._session.hello.name!r}"
        raise GroupTimeout(what, now - began, last.present, last.missing, last.short)

    # ---------------------------------------------------------------------------------------------- driving

    def next_deadline(self) -> float | None:
        """When `on_timer` is due, on the client's clock."""
        if self._is_undrained:
            return 0.0
        with self._lock:
            return self._allegiance.next_deadline()

    def on_readable(self, now: float) -> list[News]:
        """Take all that has come. The news is for the caller to act on."""
        return self._pump(now)

    def on_timer(self, now: float) -> list[News]:
        """Take all that has come, and do what is due."""
        return self._pump(now)

    def on_frames(self, received: tuple[str, Any], now: float) -> list[News]:
        """Take one message, with its address, that the driver has received from `link`."""
        return self._take(*received, now, strict=False)

    def on_link_event(self, event: tuple[str, str], now: float) -> list[News]:
        """Take one event that the driver has received from `watch`."""
        return self._note_change(*event, now)

    def _pump(self, now: float, strict: bool = False) -> list[News]:
        """Drain the link and run the timers, until neither leaves anything to do."""
        news: list[News] = []
        while True:
            self._is_undrained = False
            for address, what in iter(self.watch.receive, None):
                news += self._note_change(address, what, now)
            for address, frames in iter(self.link.receive, None):
                news += self._take(address, frames, now, strict)
            self._is_undrained = self._is_undrained or self.link.is_busy
            news += self._tick(now)
            if not self._is_undrained:
                return news

    def _note_change(self, address: str, what: str, now: float) -> list[News]:
        self._reach.note(address, what, now)
        return self._feed(LineChange(address, what), now)

    def _take(self, address: str, frames: Any, now: float, strict: bool) -> list[News]:
        try:
            envelope = unpack(frames, CLIENT_LIMITS)
            if envelope.receiver_incarnation not in (0, self._session.incarnation):
                return []  # for an earlier life on this route
            message = read(envelope, MEMBER_READS)
        except FrameError:
            self.unreadable += 1
            logger.warning("a message from the broker at %s could not be read", address, exc_info=True)
            return []
        except ZrpcError:  # another protocol version: joining is over; a member waits for a broker that it understands
            if strict:
                raise
            self.unreadable += 1
            return []
        return self._feed(LineArrival(address, message), now)

    def _tick(self, now: float) -> list[News]:
        due = self._allegiance.next_deadline()
        if due is None or now < due:
            return []
        if self._statistics is not None:
            self._session.statistics = self._statistics()
        return self._feed(Tick(), now)

    def _feed(self, event: object, now: float) -> list[News]:
        """Give an event to the session, perform what it decides, return its news."""
        with self._lock:
            effects = self._allegiance.handle(event, now)
            identity = self._session.id, self._session.incarnation
            self._changed.notify_all()
        news = self._perform(effects, identity)
        if any(isinstance(item, CountsWanted) for item in news):
            news = [item for item in news if not isinstance(item, CountsWanted)]
            if self._session.state == "ending":
                news += self._feed(ShutdownWish(self._counts()), now)
        return news

    def _perform(self, effects: list[Effect], identity: tuple[int, int]) -> list[News]:
        news: list[News] = []
        for effect in effects:
            if isinstance(effect, Announce):
                news.append(effect.news)
            elif isinstance(effect, Dispatch):
                frames = seal(effect.message, *identity)
                for address in effect.addresses:
                    self._send(address, frames)
            elif isinstance(effect, OpenLine):
                self._open(effect.address)
            elif isinstance(effect, CloseLine):
                self.link.shut(effect.address)
        return news

    def _send(self, address: str, frames: Frames) -> None:
        try:
            if self.link.send(address, frames):
                self._is_undrained = True
        except Unavailable:
            logger.debug("the link to the broker at %s is closed", address, exc_info=True)

    def _open(self, address: str) -> None:
        try:
            self.link.open(address)
            self._is_undrained = True  # what happened before anybody waited for it
        except ZrpcError:  # no descriptor is left, or the address makes no sense: the others go on
            logger.warning("no connection to the broker at %s", address, exc_info=True)

    def _command(self, event: object) -> list[News]:
        """An event of the owner, from any thread."""
        news = self._feed(event, self._clock())
        if self._wake is not None:
            self._wake()  # there may be input whose edge the send consumed, and deadlines have moved
        return news

    # --------------------------------------------------------------------------------- what the owner wants

    def beat(self, statistics: Mapping[str, int | float]) -> None:
        """Report to the broker now; these statistics are repeated in each beat until there are others."""
        self._command(Report(dict(statistics)))

    def begin_shutdown(self, counts: Callable[[], Counts]) -> None:
        """Ask to end together with the static group. `Released` is the news when all may go; others hear it at once.

        `counts` is asked again and again until then; call `report_counts` when calls have just ended, to be quicker.
        Raises `InvalidTransition` when this process is not a member.
        """
        self._counts = counts
        self._command(ShutdownWish(counts()))

    def drain(self) -> None:
        """Tell the cluster that this process takes no new work. Raises `InvalidTransition` when it is no member."""
        self._command(Drain())

    def report_counts(self) -> None:
        """The counts have changed; nothing happens when `begin_shutdown` was not called."""
        if self._session.state == "ending":
            try:
                self._command(ShutdownWish(self._counts()))
            except InvalidTransition:
                pass  # released, or fenced, since the line above

    def refresh(self, worker: str | int, timeout: float) -> Member | None:
        """Ask the broker about a worker that is not known here; None when it is not known there either.

        Blocks, while another thread drives this client, until the worker is up or `timeout` seconds have passed.
        """
        deadline = self._clock() + timeout
        answers = self._session.answers
        if self._session.state not in MEMBER_STATES:
            return None
        self._command(Inquiry())
        with self._changed:
            while True:
                session = self._session
                found = session.members.get(worker) if isinstance(worker, str) else session.members_by_id.get(worker)
                left = deadline - self._clock()
                if found is not None or left <= 0 or session.answers != answers:
                    return found
                self._changed.wait(left)

    def leave(self, why: str = "") -> None:
        """Tell the broker that this process is no member any more. Idempotent."""
        if self._session.state != "left":
            self._command(Departure(why))

    def close(self) -> None:
        """Close the link. What was said is given a moment to leave."""
        if not self._is_closed:
            self._is_closed = True
            self.link.close()
