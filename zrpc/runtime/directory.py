"""Who is in the cluster, as the broker's client knows it.

One rule: it only answers; what a join or a loss means is the agent's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from zrpc.ids import WorkerInfo
from zrpc.protocol.effects import Counts, News
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.peers import Address
from zrpc.runtime.receiver import Input
from zrpc.wire.messages import Member


class ClusterClient(Protocol):
    """The broker's client, once it has joined (`broker.client.BrokerClient` is one). Safe to use from any thread."""

    @property
    def link(self) -> Input: ...

    @property
    def watch(self) -> Input: ...

    @property
    def members_by_name(self) -> Mapping[str, Member]: ...

    @property
    def members_by_id(self) -> Mapping[int, Member]: ...

    def members(self) -> list[Member]: ...

    def refresh(self, worker: str | int, timeout: float) -> Member | None: ...

    def on_frames(self, received: Any, now: float) -> list[News]: ...

    def on_link_event(self, event: Any, now: float) -> list[News]: ...

    def on_timer(self, now: float) -> list[News]: ...

    def next_deadline(self) -> float | None: ...

    def begin_shutdown(self, counts: Callable[[], Counts]) -> None: ...

    def report_counts(self) -> None: ...

    def drain(self) -> None: ...

    def leave(self, why: str = "") -> None: ...

    def close(self) -> None: ...


class MemberDirectory:
    """The members, as addresses."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    def find_name(self, name: str) -> Address | None:
        return _address(self._client.members_by_name.get(name))

    def find_id(self, worker_id: int) -> Address | None:
        return _address(self._client.members_by_id.get(worker_id))

    def names(self) -> list[str]:
        return sorted(member.name for member in self._client.members())

    def refresh(self, name: str | int, timeout: float) -> Address | None:
        """Ask the broker about somebody; waits at most `timeout` seconds for its answer."""
        with blocking_here():
            return _address(self._client.refresh(name, timeout))


def _address(member: Member | None) -> Address | None:
    if member is None:
        return None
    return Address(WorkerInfo(member.name, member.id), member.incarnation, member.address)
