"""Meeting on one host: who is let in, and how little is read before."""

from __future__ import annotations

import os
import socket

import pytest

from zrpc.errors import Unavailable
from zrpc.transport.local import LocalLink
from zrpc.transport.samehost import (
    FOR_MESSAGES,
    SECRET_BYTES,
    TURNED_AWAY,
    LocalListener,
    connect_local,
    host_mark,
    is_same_secret,
    new_secret,
)


def test_connecting_and_saying_the_secret() -> None:
    listener = LocalListener()
    secret = new_secret()
    link = connect_local(listener.address, secret)
    newcomer = listener.receive()
    assert newcomer is not None
    said = newcomer.receive()
    assert said is not None
    assert is_same_secret(said[:SECRET_BYTES], secret)
    assert said[SECRET_BYTES:] == FOR_MESSAGES
    assert len(secret) == SECRET_BYTES
    served = LocalLink(newcomer.admit())
    link.send([b"hello"])
    assert served.receive() == [b"hello"]
    served.send([b"hello yourself"])
    assert link.receive() == [b"hello yourself"]
    assert listener.receive() is None
    for end in (link, served, listener):
        end.close()


def test_no_more_than_a_secret_is_read_from_a_newcomer() -> None:
    listener = LocalListener()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect("\0" + listener.address)
        newcomer = listener.receive()
        assert newcomer is not None
        assert newcomer.receive() is None
        stranger.send(b"x" * 10)
        assert newcomer.receive() is None
        stranger.send(b"x" * 1000)
        assert newcomer.receive() == b"x" * (SECRET_BYTES + 1)
        newcomer.close()
        assert newcomer.receive() is None
    listener.close()


def test_a_newcomer_that_leaves_has_said_little() -> None:
    listener = LocalListener()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect("\0" + listener.address)
        stranger.send(b"abc")
    newcomer = listener.receive()
    assert newcomer is not None
    assert newcomer.receive() is None
    assert newcomer.receive() == b"abc"
    newcomer.close()
    listener.close()


def test_nobody_there() -> None:
    listener = LocalListener()
    address = listener.address
    listener.close()
    with pytest.raises(Unavailable):
        connect_local(address, new_secret())


def test_other_users_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = LocalListener()
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(Unavailable, match="another user"):
        connect_local(listener.address, new_secret())
    assert listener.receive() is None
    assert listener.refused == 1
    listener.close()


def test_many_of_other_users_do_not_keep_the_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = LocalListener()
    secret = new_secret()
    strangers = []
    with monkeypatch.context() as patched:
        for _ in range(TURNED_AWAY):
            strangers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            strangers[-1].connect("\0" + listener.address)
        link = connect_local(listener.address, secret)
        patched.setattr(os, "getuid", lambda: 4_000_000)
        assert listener.receive() is None
        assert listener.is_busy
    newcomer = listener.receive()
    assert newcomer is not None
    assert not listener.is_busy
    assert listener.refused == TURNED_AWAY
    newcomer.close()
    for end in (link, listener, *strangers):
        end.close()


def test_the_mark_is_of_this_host_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = host_mark()
    assert mark is not None
    assert len(mark) == 32
    assert host_mark() == mark
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert host_mark() != mark
