"""From an init method to a way to meet.

One rule: an init method that torch takes is taken, and one that it refuses is refused with its words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlparse

from zrpc.rendezvous import stores
from zrpc.rendezvous.files import FileMeeting
from zrpc.rendezvous.meeting import Meeting, Party
from zrpc.rendezvous.plain import PlainMeeting


def plan_meeting(init_method: str, party: Party, bind: str) -> Meeting:
    """The meeting that an init method stands for; nothing is opened yet.

    `bind` is where a broker listens when the init method does not say. Raises `ValueError`, as torch does, when something
    is missing.
    """
    parts = urlparse(init_method)
    if parts.scheme == "file":
        if not parts.path:
            raise _error(init_method, "path missing")
        if party.rank < 0:
            raise _error(init_method, "rank parameter missing")
        return FileMeeting(party, parts.path, bind)
    if stores.available():
        _check(init_method, party)
        return stores.StoreMeeting(party, init_method, stores.master_host(init_method))
    _check(init_method, party)
    if parts.scheme == "tcp":
        return PlainMeeting(party, parts.hostname or "localhost", parts.port or 0)
    if parts.scheme == "env":
        return PlainMeeting(party, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    raise RuntimeError(f"No rendezvous handler for {parts.scheme}://")


def rank_of(rank: int, init_method: str, environ: Mapping[str, str]) -> int:
    """The rank, from the environment when env:// is used and none is given."""
    if rank >= 0 or not init_method.startswith("env://"):
        return rank
    text = environ.get("RANK", "")
    if not text:
        raise _error(init_method, "environment variable RANK expected, but not set")
    return int(text)


def _check(init_method: str, party: Party) -> None:
    parts = urlparse(init_method)
    if parts.scheme == "tcp":
        if parts.port is None:
            raise _error(init_method, "port number missing")
        if party.rank < 0:
            raise _error(init_method, "rank parameter missing")
    if parts.scheme == "env":
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise _error(init_method, f"environment variable {name} expected, but not set")


def _error(init_method: str, what: str) -> ValueError:
    scheme = urlparse(init_method).scheme
    return ValueError(f"Error initializing torch.distributed using {scheme}:// rendezvous: {what}")
