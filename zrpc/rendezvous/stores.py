"""Meeting at a `torch.distributed` store: `init_method` "env://", "tcp://host:port" and whatever is registered there.

One rule: rank 0 puts the record in the store under a key of ours, the others read it; the store stays torch's, and what
else is in it is not touched. It may be the store of `torch.distributed.init_process_group` at the same address.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse, urlunparse

import torch.distributed

from zrpc.clock import monotonic
from zrpc.errors import ConfigError
from zrpc.rendezvous.meeting import PATIENCE, Meeting, Party, Place, endpoint, interface_towards, is_loopback, port_of
from zrpc.rendezvous.record import Record


def available() -> bool:
    """Whether this build of torch has stores."""
    return torch.distributed.is_available()


class StoreMeeting(Meeting):
    """A rendezvous at a store. Nothing is opened before `find`."""

    patience = PATIENCE  # a store that outlives its group, as torchrun's does, may hold the record of an earlier one

    def __init__(self, party: Party, url: str, host: str) -> None:
        super().__init__(party)
        self._url = url
        self._host = host
        self._store: Any = None
        self._key = f"zrpc/{party.round}/broker"

    def find(self, deadline: float) -> Place:
        interface = "127.0.0.1" if is_loopback(self._host) else interface_towards(self._host)
        if self.party.rank == 0:
            self._store = self._open(deadline)
            return self._begin(interface)
        record = self._wait_for_record(deadline)
        return Place(record.address, self._key_for(record), interface)

    def _open(self, deadline: float) -> Any:
        meet: Any = getattr(torch.distributed, "rendezvous")  # noqa: B009  not there in builds without stores
        store, _, _ = next(iter(meet(full_url(self._url, self.party), timeout=_left(deadline))))
        return store

    def _wait_for_record(self, deadline: float) -> Record:
        began = monotonic()
        while True:
            try:
                store = self._open(deadline)
                store.set_timeout(_left(deadline))
                text = store.get(self._key)
            except RuntimeError:
                # The time is over; or it was the store of an earlier group, whose end cut us off: look for the next.
                self._pause_until(deadline, began)
                continue
            record = Record.from_json(text)
            if record is None:
                raise ConfigError("init_rpc", [f"the store at {self._url} holds something else under {self._key!r}"])
            return record

    def _begin(self, interface: str) -> Place:
        keyring = self._choose_key()
        everywhere = interface if is_loopback(self._host) else "0.0.0.0"
        broker = self._serve(keyring, (endpoint(everywhere),))
        # Others find this host by the name that they know it by, as they found the store.
        address = endpoint(interface if is_loopback(self._host) else self._host, port_of(broker.address))
        self._store.set(self._key, self._describe(address, keyring).to_json())
        return Place(endpoint(interface, port_of(broker.address)), keyring, interface)

    def _withdraw(self, is_empty: bool) -> None:
        self._store = None


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(0.001, deadline - monotonic()))


def full_url(url: str, party: Party) -> str:
    """`url` with rank and world size, as torch's handlers want them; without a rank the handler says what is missing."""
    parts = urlparse(url)
    said = [f"world_size={party.world_size or -1}"]
    if party.rank >= 0:
        said.append(f"rank={party.rank}")
    query = "&".join([*filter(None, [parts.query]), *said])
    return urlunparse(parts._replace(query=query))


def master_host(url: str) -> str:
    """The host that the store is at, as far as the init method says."""
    parts = urlparse(url)
    return (parts.hostname if parts.scheme != "env" else os.environ.get("MASTER_ADDR")) or "localhost"
