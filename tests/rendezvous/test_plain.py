"""Meeting without torch's stores: the broker is at the address itself."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from zrpc.clock import monotonic
from zrpc.errors import ConfigError, GroupTimeout
from zrpc.rendezvous.meeting import Party
from zrpc.rendezvous.plain import PlainMeeting


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_host_and_guest_meet_and_nothing_is_left(tmp_path: Path, port: int) -> None:
    host = PlainMeeting(Party(0, 2), "localhost", port)
    place = host.find(monotonic())
    assert PlainMeeting(Party(1, 2), "localhost", port).find(monotonic() + 5) == place
    assert place.address == f"tcp://127.0.0.1:{port}"
    host.end(True)
    assert list((tmp_path / "zrpc").iterdir()) == []


def test_a_guest_waits_for_the_key(port: int) -> None:
    with pytest.raises(GroupTimeout, match="rank 0"):
        PlainMeeting(Party(1, 2), "localhost", port).find(monotonic() + 0.05)


def test_a_port_in_use_is_said_and_nothing_is_left(tmp_path: Path, port: int) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(ConfigError):
            PlainMeeting(Party(0, 2), "localhost", port).find(monotonic())
    assert list((tmp_path / "zrpc").iterdir()) == []
