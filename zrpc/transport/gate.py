"""Who knocks at a listening socket too often without a key: counted, logged, and kept out by the system for a while.

A handshake that fails costs the listener about 100 us of ZeroMQ's I/O thread: 10,000 of them a second would leave it
nothing for its peers. What is not accepted costs next to nothing. So when failures come faster than `LASTING` a second, a
filter on the listening socket (`Doorway`) has the system drop most of the connection requests of the hosts that make them.
One in `share` is let through: so many that few failures are left, and that a flood's end is noticed by their absence. The
share is worked out anew every `LOOK` seconds, so a host is let in again some seconds after it stopped.

A connection whose handshake does not get on is a failure too, once it ends, or when there are so many of them that the
process's descriptors get scarce. It counts for a part of one that fails at once: when thousands begin together, on a host
that is too busy for them, many are too slow and try again.

One rule: what ZeroMQ tells of a connection may be late, and it does not always say which one it means. So nothing here
depends on one connection; hosts are blamed for what many of theirs did.
"""

from __future__ import annotations

import logging
import resource
import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from zrpc.clock import Clock, monotonic
from zrpc.transport.doorway import LOOPBACK, Doorway, Host, Source, host_of

BURST: Final = 512
"""Failures that may come at once: 50 ms of work. Dozens of workers that begin together may make some by right."""
LASTING: Final = 100.0
"""Failures a second that may go on: 1 % of a core. A member with an old key makes one or two."""
BURST_OUTSIDE: Final = 64
"""Failures that may come at once while somebody is kept out, or has just been."""
LASTING_OUTSIDE: Final = 20.0
"""Failures a second that may go on while somebody is kept out; those whom nobody minds are fewer."""
WANTED: Final = 5.0
"""Failures a second that the share of connection requests is set to: enough to see that a flood goes on. Calls do not
notice them; at 20 a second they did, since each takes the interpreter twice."""
LOOK: Final = 0.5
"""Seconds between two looks at what comes through."""
FIRST_SHARE: Final = 256
MOST_SHARE: Final = 4096
"""Of so many connection requests of a host that is kept out one is let through, at first and at least. Powers of two."""
PENALTY: Final = 30.0
"""Seconds after which a host is let in of which nothing was seen, whoever makes the failures that still come."""
MOST_HOSTS: Final = 32
"""Hosts in one filter, the worst: jumps of the filter's programs are short."""
RECENT: Final = 64
"""Connections whose hosts are remembered."""
BLAMED: Final = 4
"""A host with one in so many of the recent connections is kept out."""
PATIENCE: Final = 1.0
"""Seconds from which on a handshake is slow."""
SLOW: Final = 0.25
"""What counts of the failure of a slow one."""
SCARCE: Final = 0.75
"""Descriptors are scarce when so many of those that this process may open are,"""
HELD: Final = 0.125
"""and to blame are handshakes under way when they take so many of them."""

logger = logging.getLogger(__name__)


def descriptors() -> int:
    """How many descriptors this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1 << 30  # without a limit


class Handshakes:
    """Connections that were accepted, and whose handshake is not known to have ended. Not safe to use from any thread.

    ZeroMQ names the connection when it is accepted and when it is closed, but not when its handshake succeeds or fails. A
    failed one is closed at once, so it is the next that closes; one that ends without either was none of ZeroMQ's protocol.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[Host | None, float]] = {}
        self._succeeded = self._failed = 0
        """How many of those have ended in this way; which of them is not known."""

    def __len__(self) -> int:
        return max(0, len(self._open) - self._succeeded - self._failed)

    def accepted(self, fd: int, host: Host | None, now: float) -> None:
        self._open.pop(fd, None)
        self._open[fd] = host, now  # the oldest first
        self._settle()

    def succeeded(self) -> None:
        self._succeeded += 1
        self._settle()

    def failed(self) -> None:
        self._failed = min(self._failed + 1, len(self._open))

    def closed(self, fd: int, now: float) -> tuple[bool, bool]:
        """A connection is closed. Returns whether that is a failure which nobody has told of; and whether it is a failure,
        told of or not, that took long."""
        entry = self._open.pop(fd, None)
        if entry is None:
            return False, False  # a peer's
        is_slow = now - entry[1] > PATIENCE
        is_untold = False
        if self._failed:
            self._failed -= 1
        elif self._succeeded > len(self._open):  # all of them were peers'
            self._succeeded -= 1
            is_slow = False
        else:
            is_untold = True
        self._settle()
        return is_untold, is_slow

    def _settle(self) -> None:
        if self._succeeded + self._failed >= len(self._open):
            self._open.clear()
            self._succeeded = self._failed = 0

    def hosts(self) -> list[Host | None]:
        """Where they come from."""
        return [host for host, _ in self._open.values()]


class Gate:
    """Counts failed handshakes of one listener, and decides who is kept out. Safe to use from any thread."""

    def __init__(self, address: str, clock: Clock = monotonic, look: float = LOOK) -> None:
        """`look`: seconds between two looks at who may be let in again."""
        self.address = address
        self.refused: Counter[str] = Counter()
        """Failed handshakes by reason."""
        self._interval = look
        self._clock = clock
        self._lock = threading.Lock()
        self._doorway: Doorway | None = None
        self._handshakes = Handshakes()
        self._descriptors = descriptors()
        self._checked = float("-inf")
        self._recent: deque[Host] = deque(maxlen=RECENT)
        self._kept_out: dict[Source, float] = {}
        """Who is kept out, and until when if nothing is seen of it."""
        self._share = FIRST_SHARE
        self._budget = float(BURST)
        self._last = clock()
        self._rate = 0.0
        """Failures a second, while somebody is kept out: a mean in which the newest counts half."""
        self._since_look = 0
        self._looked = 0.0
        self._over = threading.Event()
        self._looker: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Gate {self.address} refused={dict(self.refused)} kept_out={sorted(map(str, self._kept_out))}>"

    def guard(self, doorway: Doorway) -> None:
        """The listening socket is there."""
        with self._lock:
            self._doorway = doorway

    def accepted(self, fd: int, is_newest: bool = True) -> None:
        """A connection was accepted; what becomes of its handshake is yet to be seen.

        The descriptor may have been closed and given to another connection, if whoever tells this is late: `is_newest`
        says that it is the last of some that had the same one. Even then a host may be wrongly seen once; it is not
        blamed for that.
        """
        host = host_of(fd) if is_newest else None
        added: list[Source] = []
        with self._lock:
            now = self._clock()
            self._handshakes.accepted(fd, host, now)
            if host is not None:
                self._recent.append(host)
                for source in (host, LOOPBACK):
                    if source in self._kept_out and (source is host or host in LOOPBACK):
                        self._kept_out[source] = now + PENALTY
            # Descriptors are the lowest that are free: this one says how many there are.
            if fd >= SCARCE * self._descriptors and self._holds(HELD) and now - self._checked >= self._interval / 4:
                self._checked = now
                added = self._blame(now, self._handshakes.hosts())
        self._tell(added, "their handshakes do not get on and take too many descriptors")

    def _holds(self, part: float) -> bool:
        """Whether handshakes under way take such a part of all descriptors."""
        return len(self._handshakes) > part * self._descriptors

    def succeeded(self) -> None:
        """A handshake has succeeded."""
        with self._lock:
            self._handshakes.succeeded()

    def closed(self, fd: int) -> None:
        """A connection was closed, perhaps before its handshake had ended."""
        with self._lock:
            is_untold, is_slow = self._handshakes.closed(fd, self._clock())
        if is_untold:
            self._failed("no handshake")
        if is_slow:
            with self._lock:
                self._budget += 1.0 - SLOW

    def failed(self, why: str) -> None:
        """A handshake has failed."""
        with self._lock:
            self._handshakes.failed()
        self._failed(why)

    def _failed(self, why: str) -> None:
        with self._lock:
            self.refused[why] += 1
            count = self.refused.total() - self.refused["hosts kept out"]
            last = self._recent[-1] if self._recent else "somebody"
            now = self._clock()
            self._since_look += 1
            most, lasting = (BURST_OUTSIDE, LASTING_OUTSIDE) if self._kept_out else (BURST, LASTING)
            self._budget = min(float(most), self._budget + (now - self._last) * lasting) - 1.0
            self._last = now
            added = self._blame(now, self._recent) if self._budget < 0.0 else []
        if count == 10 ** (len(str(count)) - 1):  # 1, 10, 100, ...
            logger.warning("%d handshake(s) with %s have failed, lately by %s (%s)", count, self.address, last, why)
        self._tell(added, "handshakes fail too fast")

    def _tell(self, added: list[Source], why: str) -> None:
        if added:
            names = ", ".join(map(str, added))
            logger.warning("%s: most connections to %s are refused, until it stops: %s", names, self.address, why)

    def _blame(self, now: float, suspects: Iterable[Host | None]) -> list[Source]:
        """Keep out who knocks most. With the lock held; returns who is new."""
        self._budget = float(BURST_OUTSIDE)
        if self._doorway is None:
            return []
        blamed = worst_of([host for host in suspects if host is not None])
        added = [host for host in blamed if host not in self._kept_out]
        if not (added or self._kept_out):
            return []
        kept = self._kept_out | dict.fromkeys(blamed, now + PENALTY)
        while len(kept) > MOST_HOSTS:
            del kept[min(kept, key=lambda host: kept[host])]
        share = min(MOST_SHARE, 16 * self._share) if not added else max(FIRST_SHARE, self._share)
        if not self._doorway.keep_out(kept, share):
            return []
        if not self._kept_out:
            self._rate, self._since_look, self._looked = WANTED, 0, now
        self._kept_out = kept
        self._share = share
        self.refused["hosts kept out"] += len(added)
        if self._looker is None:
            self._looker = threading.Thread(target=self._watch, name="zrpc-gate", daemon=True)
            self._looker.start()
        return added

    def kept_out(self) -> list[Source]:
        """Who is kept out now."""
        with self._lock:
            return list(self._kept_out)

    @property
    def share(self) -> int:
        """Of so many connection requests of who is kept out one is let through."""
        return self._share

    def _watch(self) -> None:
        """Look on while somebody is kept out, in a thread that there is only then."""
        while not self._over.wait(self._interval):
            with self._lock:
                self._look(self._clock())
                if not self._kept_out:
                    self._looker = None
                    return

    def _look(self, now: float) -> None:
        """Let in more or less of those who are kept out, by how many failures came since the last look. With the lock."""
        passed = now - self._looked
        if passed < self._interval / 2:
            return
        self._rate += (self._since_look / passed - self._rate) / 2
        self._since_look, self._looked = 0, now
        kept = {host: until for host, until in self._kept_out.items() if until > now}
        change = factor(self._rate)
        if change < 1.0 and self._holds(HELD):
            change = 1.0
        share = min(MOST_SHARE, max(1, int(self._share * change)))
        self._rate *= self._share / share  # what it is to be expected to be
        if share > 1 and kept:
            if (share, kept) != (self._share, self._kept_out) and self._doorway is not None:
                self._doorway.keep_out(kept, share)
            self._share, self._kept_out = share, kept
        else:
            self._share, self._kept_out = FIRST_SHARE, {}
            self._budget, self._last = float(BURST_OUTSIDE), now
            if self._doorway is not None:
                self._doorway.let_in()

    def close(self) -> None:
        """The listener closes: the copy of its socket must not outlive it."""
        self._over.set()
        with self._lock:
            doorway, self._doorway = self._doorway, None
            looker = self._looker
        if doorway is not None:
            doorway.close()
        if looker is not None:
            looker.join(5)


def factor(rate: float) -> float:
    """By how much the share of what is let through is made smaller at so many failures a second; under 1: larger."""
    if rate > WANTED * 4:
        return 4.0
    if rate > WANTED * 1.5:
        return 2.0
    if rate < WANTED / 8:
        return 0.25
    return 0.5 if rate < WANTED / 2 else 1.0


def worst_of(hosts: list[Host]) -> list[Source]:
    """Who makes a good part of these connections: a host, or this host under many of its addresses."""
    seen = Counter(hosts)
    enough = max(len(hosts), RECENT)
    found: list[Source] = [host for host, count in seen.most_common(MOST_HOSTS) if count * BLAMED >= enough]
    if not found and sum(count for host, count in seen.items() if host in LOOPBACK) * BLAMED >= enough:
        found.append(LOOPBACK)
    return found
