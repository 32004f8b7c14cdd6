"""A broker inside a process: how long it stays, and whom it tells of a failure."""

from __future__ import annotations

import secrets
import socket
import threading
from typing import Any

import pytest

from zrpc.broker.client import BrokerClient
from zrpc.clock import monotonic
from zrpc.errors import BrokerUnreachable, ConfigError, NameTaken
from zrpc.rendezvous.hosting import EmbeddedBroker
from zrpc.transport.curve import new_keyring
from zrpc.transport.router import ZmqTransport
from zrpc.wire.messages import Hello

HERE = "tcp://127.0.0.1:0"


def client(
    transport: ZmqTransport, address: str, name: str, patience: float | None = None, **fields: Any
) -> BrokerClient:
    hello = Hello(name=name, nonce=secrets.randbits(60) + 1, address=f"tcp://127.0.0.1:{1 + len(name)}", **fields)
    return BrokerClient(transport, address, hello, patience=patience)


def test_it_stays_until_its_members_have_left_and_tells_that_it_was_empty() -> None:
    keyring = new_keyring("zrpc")
    stopped: list[bool] = []
    broker = EmbeddedBroker(keyring, (HERE,), on_stopped=stopped.append)
    transport = ZmqTransport(keyring, "member")
    try:
        member = client(transport, broker.address, "a")
        member.join(monotonic() + 10)
        assert not broker.wait_empty(0.0)
        broker.linger()
        member.leave()
        member.close()
        assert broker.wait_empty(10)
        broker.stop()
        broker.stop()
        assert stopped == [True]
    finally:
        transport.close()


def test_it_tells_all_of_a_failed_group() -> None:
    keyring = new_keyring("zrpc")
    broker = EmbeddedBroker(keyring, (HERE,))
    transport = ZmqTransport(keyring, "member")
    strict = {"world_size": 2, "strict": True}
    try:
        assert broker.wait_told(1, 0.0) is None
        errors: list[Exception] = []

        def come(rank: int) -> None:
            try:
                client(transport, broker.address, "same", id=rank, **strict).join(monotonic() + 20)
            except NameTaken as error:
                errors.append(error)

        guests = [threading.Thread(target=come, args=(rank,)) for rank in range(2)]
        for guest in guests:
            guest.start()
        for guest in guests:
            guest.join(30)
        assert len(errors) == 2
        assert isinstance(broker.wait_told(2, 20), NameTaken)
    finally:
        transport.close()
        broker.stop()


def test_another_address_is_taken_when_the_first_is_in_use() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        broker = EmbeddedBroker(None, (taken, HERE))
        assert broker.address not in (taken, HERE)
        broker.stop()
        with pytest.raises(ConfigError):
            EmbeddedBroker(None, (taken,))


def test_a_guest_that_is_not_patient_gives_up_where_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    transport = ZmqTransport(None, "member")
    try:
        began = monotonic()
        with pytest.raises(BrokerUnreachable, match="nobody listens there"):
            client(transport, free, "a", patience=0.2).join(monotonic() + 30)
        assert monotonic() - began < 10
    finally:
        transport.close()
