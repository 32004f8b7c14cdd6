"""Init methods: which way to meet, and torch's words for what is missing."""

from __future__ import annotations

import pytest

from zrpc.rendezvous.files import FileMeeting
from zrpc.rendezvous.meeting import Party, endpoint, interface_towards, is_loopback, port_of
from zrpc.rendezvous.methods import plan_meeting, rank_of
from zrpc.rendezvous.stores import StoreMeeting, full_url, master_host

BIND = "tcp://127.0.0.1:0"


@pytest.mark.parametrize(
    ("method", "rank", "missing"),
    [
        ("file:///tmp/x", -1, "using file:// rendezvous: rank parameter missing"),
        ("file://", 0, "using file:// rendezvous: path missing"),
        ("tcp://127.0.0.1:9", -1, "using tcp:// rendezvous: rank parameter missing"),
        ("tcp://127.0.0.1", 0, "using tcp:// rendezvous: port number missing"),
        ("env://", 0, "using env:// rendezvous: environment variable MASTER_ADDR expected, but not set"),
    ],
)
def test_what_is_missing_is_said_as_torch_says_it(
    method: str, rank: int, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match=missing):
        plan_meeting(method, Party(rank, 2), BIND)


def test_the_rank_is_the_environments_with_env() -> None:
    assert rank_of(-1, "env://", {"RANK": "3"}) == 3
    assert rank_of(2, "env://", {"RANK": "3"}) == 2
    assert rank_of(-1, "tcp://h:1", {"RANK": "3"}) == -1
    with pytest.raises(ValueError, match="environment variable RANK expected, but not set"):
        rank_of(-1, "env://", {})


def test_ways_to_meet() -> None:
    assert isinstance(plan_meeting("file:///tmp/x", Party(0, 2), BIND), FileMeeting)
    assert isinstance(plan_meeting("tcp://127.0.0.1:9", Party(0, 2), BIND), StoreMeeting)


def test_torch_is_told_rank_and_size() -> None:
    assert full_url("tcp://h:1", Party(0, 4)) == "tcp://h:1?world_size=4&rank=0"
    assert full_url("tcp://h:1?use_libuv=0", Party(2, 0)) == "tcp://h:1?use_libuv=0&world_size=-1&rank=2"


def test_the_master_is_where_the_method_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert master_host("env://") == "node7"
    assert master_host("tcp://node8:1") == "node8"


def test_interfaces_and_endpoints() -> None:
    assert interface_towards("127.0.0.1") == "127.0.0.1"
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "::1", "10.0.0.1", "node7")] == [
        *(True, True, True),
        *(False, False),
    ]
    assert (endpoint("10.0.0.1", 5), endpoint("::1")) == ("tcp://10.0.0.1:5", "tcp://[::1]:0")
    assert port_of("tcp://[::1]:77") == 77
