"""Peers: who asks for lanes, whatever other threads do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from interleaving import at_each_step

from zrpc.ids import WorkerInfo
from zrpc.runtime.peers import Address, Peer, PeerBook
from zrpc.runtime.receiver import Receiver
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.wire.limits import Limits


class Nobody:
    """A directory without workers."""

    def find_name(self, name: str) -> None:
        return None

    def find_id(self, worker_id: int) -> None:
        return None

    def names(self) -> list[str]:
        return []

    def refresh(self, name: str | int, timeout: float) -> None:
        return None


@pytest.fixture
def peers() -> Iterator[PeerBook]:
    receiver = Receiver()
    yield PeerBook(MemoryTransport(MemoryNetwork()), Nobody(), receiver, lambda frames: None, Limits())
    receiver.close()


def test_two_threads_that_call_a_new_peer_at_once_ask_for_lanes_once(peers: PeerBook) -> None:
    asked: list[Peer] = []
    peers.seek_lane = asked.append

    def make() -> tuple[Any, Any]:
        asked.clear()
        peer = Peer(peers, Address(WorkerInfo("b", 1), 7, "memory://b"))

        def rival() -> None:
            if not peer._lock.locked():  # else it waits, and comes after
                peer._ask_for_lane()

        return peer._ask_for_lane, rival

    steps = 0
    for _ in at_each_step(make):
        steps += 1
        assert len(asked) == 1
    assert steps > 10
