"""How many names a host, and a connection, may have."""

from __future__ import annotations

import pytest
from member_world import EPOCH_MS, hello

from zrpc.errors import JoinRefused, TooManyNames
from zrpc.protocol.effects import Announce, Arrival, Effect, MemberUp, PeerRefused, RouteLoss, Send
from zrpc.protocol.membership import RegistryOptions
from zrpc.protocol.quota import NameQuota
from zrpc.protocol.registry import Registry
from zrpc.wire.messages import Goodbye, Hello, Refusal


def test_names_of_a_host() -> None:
    quota = NameQuota(2, 10)
    quota.begin("a", "h", b"1")
    quota.begin("b", "h", b"2")
    error = quota.check("c", "h", b"3")
    assert isinstance(error, TooManyNames)
    assert "host 'h' has 2 names, as many as the broker takes from one (names_per_host)" in str(error)
    assert quota.check("c", "other", b"3") is None
    assert quota.check("a", "h", b"4") is None  # its next life
    quota.end("a")
    quota.end("a")
    assert quota.check("c", "h", b"3") is None


def test_names_of_a_connection() -> None:
    quota = NameQuota(10, 2)
    for name in ("a", "b"):
        quota.begin(name, "h", b"1")
        quota.end(name)
    assert str(quota.check("c", "h", b"1")).startswith("this connection has 2 names")
    assert quota.check("a", "h", b"1") is None
    assert quota.check("c", "h", b"2") is None
    quota.close(b"1")
    assert quota.check("c", "h", b"1") is None
    assert repr(quota) == "<NameQuota names=0 hosts=0 connections=0>"


def test_a_host_that_was_wrong_is_corrected() -> None:
    quota = NameQuota(1, 10)
    quota.begin("a", "h", b"1")
    quota.begin("a", "other", b"2")
    assert quota.check("b", "h", b"3") is None
    assert quota.check("b", "other", b"3") is not None


# ------------------------------------------------------------------------------------------------ in the registry


def registry(**options: int) -> Registry:
    return Registry("test", EPOCH_MS, 0.0, RegistryOptions(**options))  # type: ignore[arg-type]


def outcome(effects: list[Effect]) -> list[str]:
    """Who came up or was refused."""
    news = [effect.news for effect in effects if isinstance(effect, Announce)]
    return [type(one).__name__ for one in news if isinstance(one, (MemberUp, PeerRefused))]


def say_hello(found: Registry, name: str, route: bytes, host: str = "h") -> list[Effect]:
    message: Hello = hello(name, host=host)
    return found.handle(Arrival(message, route), 1.0)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_registry_refuses_the_next_name_of_a_host(limit: int) -> None:
    found = registry(names_per_host=limit)
    for index in range(limit):
        assert outcome(say_hello(found, f"w{index}", b"%d" % index)) == ["MemberUp"]
    effects = say_hello(found, "more", b"more")
    assert outcome(effects) == ["PeerRefused"]
    (refusal,) = (e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Refusal))
    error = refusal.to_error()
    assert isinstance(error, TooManyNames)
    assert issubclass(TooManyNames, JoinRefused)
    assert (error.peer, error.limit, error.option) == ("host 'h'", limit, "names_per_host")
    assert found.refused == {"TooManyNames": 1}
    assert outcome(say_hello(found, "there", b"there", host="elsewhere")) == ["MemberUp"]


def test_a_registry_refuses_names_that_come_and_go_over_one_connection() -> None:
    found = registry(names_per_connection=3)
    for index in range(3):
        assert outcome(say_hello(found, f"w{index}", b"1")) == ["MemberUp"]
        record = found.book.by_name[f"w{index}"]
        found.handle(Arrival(Goodbye(), b"1", record.id, record.incarnation), 1.0)
    assert outcome(say_hello(found, "more", b"1")) == ["PeerRefused"]
    found.handle(RouteLoss(b"1"), 1.0)
    assert outcome(say_hello(found, "more", b"2")) == ["MemberUp"]
