"""Lanes to and from other workers of this host: who is offered one, and who comes in by one.

One rule: a lane is an optimization that two agents agree on over their encrypted connection, and everything works
without it. A worker asks another one for a lane when it first has something for it, and says which host and user it is of.
If these are the other's own, the answer has an address and a secret; connections that begin with the secret are the
asker's. If there is no answer, or a connection fails, calls go on over the ROUTER.

The end of a lane is no more than a sign: only the broker decides that a worker is lost.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from zrpc.channel.bulk import Bulk
from zrpc.channel.segments import IS_SUPPORTED, Pool
from zrpc.errors import Unavailable
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.askers import LaneAsker
from zrpc.runtime.peers import Peer
from zrpc.runtime.profiling import Completion
from zrpc.runtime.receiver import Receiver, Source
from zrpc.transport.local import LocalLink
from zrpc.transport.samehost import (
    FOR_MEMORY,
    FOR_MESSAGES,
    MAX_UNPROVEN,
    SECRET_BYTES,
    LocalListener,
    Newcomer,
    connect_local,
    host_mark,
    is_same_secret,
    new_secret,
    open_connection,
)
from zrpc.wire.limits import Limits

ASK_TIMEOUT: Final = 10.0
"""Seconds until a question for a lane counts as not understood."""
NAME_BYTES: Final = 8
"""The part of a secret that it is found by; the rest is compared."""

logger = logging.getLogger(__name__)


class Lanes:
    """The lanes of one agent. `on_message` takes what comes in by one, with the way back; `ask` asks a peer a question.

    Safe to use from any thread.
    """

    def __init__(
        self,
        receiver: Receiver,
        limits: Limits,
        on_message: Callable[[LaneAsker, Any], None],
        ask: Callable[[Peer, Mapping[str, Any], Completion], None],
        is_on: bool,
        shared_memory_bytes: int = 0,
    ) -> None:
        self.pool = Pool(shared_memory_bytes if IS_SUPPORTED else 0)
        """The shared memory that is lent to others."""
        self._receiver = receiver
        self._limits = limits
        self._on_message = on_message
        self._ask = ask
        self.mark: bytes | None = host_mark() if is_on else None
        """What a question for a lane says of this host; None when there are to be no lanes."""
        self._listener: LocalListener | None = None
        self._listener_source: Source | None = None
        self._secrets: dict[bytes, tuple[bytes, WorkerKey]] = {}
        self._names: dict[WorkerKey, bytes] = {}
        self._newcomers: dict[Newcomer, Source] = {}
        self._served: dict[LocalLink, tuple[WorkerKey, Source]] = {}
        self._bulks: dict[Bulk, tuple[WorkerKey, bool, Source]] = {}  # whose, whether it came in, its source
        self._is_closed = False
        # A handler that is slow loses the turn, and the next message is handled by another thread meanwhile.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Lanes {'on' if self.mark else 'off'} served={len(self._served)} askers={len(self._names)}>"

    # ------------------------------------------------------------------------------------ asking

    def question(self) -> dict[str, Any]:
        """What to ask another worker."""
        return {"what": "lane", "host": self.mark}

    def seek(self, peer: Peer) -> None:
        """Ask a peer for lanes; if it is of this host, it has some to offer. Raises `Unavailable`."""

        def done(answer: Any, error: BaseException | None) -> None:
            link = self.connect(answer, peer.key) if error is None else None
            if link is not None:
                peer.take_offer(answer["address"], answer["secret"], link)
            elif answer:
                peer.miss_offer()

        self._ask(peer, self.question(), done)

    def connect(self, answer: Mapping[str, Any], key: WorkerKey) -> LocalLink | None:
        """The first lane to a worker that gave an answer, None when it has none to offer, or it leads nowhere."""
        address, secret = answer.get("address"), answer.get("secret")
        if self._is_closed or not isinstance(address, str) or not isinstance(secret, bytes):
            return None
        try:
            carrier = None
            if self.pool.limit and answer.get("memory") is True:
                carrier = self._open_bulk(open_connection(address, secret, FOR_MEMORY), key, False)
            link = connect_local(address, secret, self._limits)
        except Unavailable as error:
            logger.debug("no lane: %s", error)
            return None
        link.carrier = carrier
        return link

    def _open_bulk(self, connection: Any, key: WorkerKey, is_served: bool) -> Bulk:
        """A channel for shared memory with a worker, which has asked for it (`is_served`) or was asked."""
        bulk = Bulk(connection, self.pool)
        with self._lock:
            source = self._receiver.add(bulk, lambda _: None)
            bulk.wake = lambda: self._receiver.nudge(source)
            bulk.on_backlog = lambda waits: self._receiver.watch_writing(source, waits)
            bulk.on_end = lambda: self._drop_bulk(bulk)
            self._bulks[bulk] = key, is_served, source
        return bulk

    def _drop_bulk(self, bulk: Bulk) -> None:
        with self._lock:
            *_, source = self._bulks.pop(bulk, (None,))
        if source is not None:
            self._receiver.remove(source)
        bulk.close()

    # ------------------------------------------------------------------------------------ serving

    def offer(self, question: Mapping[str, Any], asker: WorkerKey) -> dict[str, Any]:
        """The answer to a question for a lane."""
        mark = question.get("host")
        if self.mark is None or self._is_closed or not isinstance(mark, bytes) or mark != self.mark:
            return {}
        with self._lock:
            return self._offer(asker)

    def _offer(self, asker: WorkerKey) -> dict[str, Any]:
        if self._listener is None:
            try:
                self._listener = LocalListener()
            except OSError as error:
                logger.warning("no lanes for workers of this host: %s", error)
                self.mark = None
                return {}
            self._listener_source = self._receiver.add(self._listener, self._greet)
        name = self._names.get(asker)
        if name is None:
            secret = new_secret()
            name = secret[:NAME_BYTES]
            self._secrets[name] = secret, asker
            self._names[asker] = name
        return {
            "address": self._listener.address,
            "secret": self._secrets[name][0],
            "memory": self.pool.limit > 0,
        }

    def _greet(self, newcomer: Newcomer) -> None:
        """Somebody has connected, and has mostly said the secret already."""
        with self._lock:
            said = newcomer.receive()
            if said is not None:
                self._judge(newcomer, said)
                return
            if len(self._newcomers) >= MAX_UNPROVEN:
                self._dismiss(next(iter(self._newcomers)))
            self._newcomers[newcomer] = self._receiver.add(newcomer, lambda said: self._hear(newcomer, said))

    def _dismiss(self, newcomer: Newcomer) -> None:
        with self._lock:
            source = self._newcomers.pop(newcomer, None)
        if source is not None:
            self._receiver.remove(source)
        newcomer.close()

    def _hear(self, newcomer: Newcomer, said: bytes) -> None:
        """A newcomer has said what should be the secret."""
        with self._lock:
            if newcomer in self._newcomers:  # it was not dismissed meanwhile
                self._judge(newcomer, said)

    def _judge(self, newcomer: Newcomer, said: bytes) -> None:
        secret, key = self._secrets.get(said[:NAME_BYTES], (b"", (0, 0)))
        purpose = said[SECRET_BYTES:]
        is_good = bool(secret) and is_same_secret(said[:SECRET_BYTES], secret)
        if self._is_closed or not is_good or purpose not in (FOR_MESSAGES, FOR_MEMORY):
            self._dismiss(newcomer)
            return
        source = self._newcomers.pop(newcomer, None)
        if source is not None:
            self._receiver.remove(source)
        if purpose == FOR_MEMORY:
            bulk = self._open_bulk(newcomer.admit(), key, True)
            for link, (owner, _) in self._served.items():
                if owner == key:
                    link.carrier = bulk
        else:
            self._serve(LocalLink(newcomer.admit(), self._limits), key)

    def _serve(self, link: LocalLink, key: WorkerKey) -> None:
        """A lane of a worker's has come in."""
        link.carrier = next((bulk for bulk, known in self._bulks.items() if known[:2] == (key, True)), None)
        asker = LaneAsker(link)
        link.on_end = lambda: self._drop(link)
        source = self._receiver.add(link, functools.partial(self._on_message, asker))
        link.on_backlog = lambda waits: self._receiver.watch_writing(source, waits)
        self._served[link] = key, source

    def _drop(self, link: LocalLink) -> None:
        with self._lock:
            _, source = self._served.pop(link, (None, None))
        if source is not None:
            self._receiver.remove(source)
        link.close()

    # ------------------------------------------------------------------------------------ ending

    def forget(self, key: WorkerKey) -> None:
        """A worker's life is over: its secret is good for nothing any more, and its lanes are closed."""
        with self._lock:
            name = self._names.pop(key, None)
            if name is not None:
                self._secrets.pop(name, None)
            links = [link for link, (owner, _) in self._served.items() if owner == key]
            bulks = [bulk for bulk, (owner, *_) in self._bulks.items() if owner == key]
        for link in links:
            self._drop(link)
        for bulk in bulks:
            self._drop_bulk(bulk)

    def close(self) -> None:
        """Close everything; nothing is offered any more. May be called again, for what came in while it was called."""
        self._is_closed = True
        if self._listener_source is not None:
            self._receiver.remove(self._listener_source)
            self._listener_source = None
        if self._listener is not None:
            self._listener.close()
        with self._lock:
            newcomers, links, bulks = list(self._newcomers), list(self._served), list(self._bulks)
        for newcomer in newcomers:
            self._dismiss(newcomer)
        for link in links:
            self._drop(link)
        for bulk in bulks:
            self._drop_bulk(bulk)
