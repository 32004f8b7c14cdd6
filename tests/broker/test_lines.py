from __future__ import annotations

import pytest

from zrpc.broker.lines import Lines, split_addresses
from zrpc.clock import monotonic
from zrpc.errors import ConfigError, Unavailable
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.poller import Poller

A, B = "memory://a", "memory://b"


def test_addresses_are_separated_with_commas() -> None:
    assert split_addresses(" tcp://a:1, tcp://b:2,,tcp://a:1") == ("tcp://a:1", "tcp://b:2")
    with pytest.raises(ConfigError):
        split_addresses(" , ")


def test_what_comes_is_told_with_its_address() -> None:
    transport = MemoryTransport(MemoryNetwork())
    listeners = {address: transport.listen(address, "broker") for address in (A, B)}
    lines = Lines(transport, (A,))
    poller = Poller()
    poller.add(lines)
    poller.add(lines.watch)
    assert lines.watch.receive() == (A, "connected")
    lines.open(B)
    lines.open(B)
    assert lines.addresses() == [A, B]
    for address, listener in listeners.items():
        lines.send(address, [b"question"])
        received = listener.receive()
        assert received is not None
        listener.send(received.route, [b"answer from " + address.encode()])
    assert lines in poller.wait(60)
    found = {address: bytes(frames[0]) for address, frames in iter(lines.receive, None)}
    assert found == {A: b"answer from memory://a", B: b"answer from memory://b"}
    listeners[B].close()
    deadline = monotonic() + 60
    while lines.watch not in poller.wait(60):
        assert monotonic() < deadline
    assert (B, "disconnected") in list(iter(lines.watch.receive, None))
    lines.shut(B)
    lines.shut(B)
    with pytest.raises(Unavailable):
        lines.send(B, [b"x"])
    assert lines.receive() is None
    lines.close()
    lines.close()
    lines.open(A)
    assert lines.addresses() == []
    poller.close()
    transport.close()
