"""A broker inside one of the workers' processes, and how long it stays.

One rule: it outlives its own worker for as long as others need it, and never the process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable

from zrpc.broker.server import BrokerServer
from zrpc.clock import monotonic
from zrpc.errors import ConfigError, ZrpcError
from zrpc.protocol.effects import GroupFailed, News
from zrpc.protocol.membership import RegistryOptions
from zrpc.rendezvous.keys import CLUSTER
from zrpc.transport.curve import Keyring
from zrpc.transport.router import ZmqTransport

GOODBYE_TIMEOUT = 10.0
"""Seconds that a graceful shutdown waits, after it, for the others of the group to leave."""
FAILURE_TIMEOUT = 5.0
"""Seconds that a failed `init_rpc` stays to tell the others of the group why."""

logger = logging.getLogger(__name__)


class EmbeddedBroker:
    """Serves from construction on, at `address`. `on_stopped` is called once, when it does no longer.

    `wanted` are addresses to try, in order; the last is used if no other can be. Raises `ConfigError` if none can.
    """

    def __init__(
        self,
        keyring: Keyring | None,
        wanted: tuple[str, ...],
        *,
        is_successor: bool = False,
        on_stopped: Callable[[bool], None] = lambda is_empty: None,
    ) -> None:
        self._on_stopped = on_stopped
        self._changed = threading.Condition()
        self._failure: GroupFailed | None = None
        self._stopping = threading.Lock()
        self._is_stopped = False
        self._pid = os.getpid()
        self._transport = ZmqTransport(keyring, "broker")
        self._server = self._start(wanted, RegistryOptions(is_successor=is_successor))
        self.address = self._server.address
        atexit.register(self.stop)

    def __repr__(self) -> str:
        return f"<EmbeddedBroker {self.address}>"

    def _start(self, wanted: tuple[str, ...], options: RegistryOptions) -> BrokerServer:
        for address in wanted:
            server = BrokerServer(self._transport, address, cluster=CLUSTER, options=options, on_event=self._on_event)
            try:
                server.start()
            except ConfigError:
                if address == wanted[-1]:
                    self._transport.close()
                    raise
                continue
            return server
        raise ConfigError("init_rpc", ["expected an address for the broker"])

    def _on_event(self, news: News) -> None:
        with self._changed:
            if isinstance(news, GroupFailed):
                self._failure = news
            self._changed.notify_all()

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until all members have left; False if some have not after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_stopped or not self._server.members(), timeout)

    def wait_told(self, count: int, timeout: float) -> ZrpcError | None:
        """Wait until `count` processes know why the group fails, or `timeout` seconds; the error, None if it is none."""
        with self._changed:
            if self._failure is None:
                return None
            self._changed.wait_for(lambda: self._failure is not None and self._failure.told >= count, timeout)
            return self._failure.error

    def linger(self) -> None:
        """Stop when all members have left. Returns at once."""
        threading.Thread(target=self._linger, name="zrpc-broker-lingers", daemon=True).start()

    def _linger(self) -> None:
        self.wait_empty(None)
        self.stop()

    def stop(self) -> None:
        """End the broker. Idempotent. A forked child does nothing: the broker is its parent's."""
        if os.getpid() != self._pid:
            return
        with self._stopping:
            if self._is_stopped:
                return
            began = monotonic()
            is_empty = not self._server.members()
            self._server.stop()
            self._transport.close()
            self._is_stopped = True
            logger.debug("the broker at %s ended in %.3f s", self.address, monotonic() - began)
        with self._changed:
            self._changed.notify_all()
        atexit.unregister(self.stop)
        self._on_stopped(is_empty)
