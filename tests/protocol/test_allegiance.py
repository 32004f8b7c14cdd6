from __future__ import annotations

from zrpc.protocol.allegiance import Allegiance
from zrpc.protocol.effects import CloseLine, Departure, Dispatch, LineArrival, LineChange, OpenLine, Start, Tick
from zrpc.protocol.session import Session
from zrpc.wire.messages import Beat, Challenge, Goodbye, Hello, Member, Roster, Welcome
from zrpc.wire.succession import Elsewhere, Vote

A, B = "tcp://a:1", "tcp://b:1"
ME = Member("w", 0, 11, 0, "tcp://w:1")
WELCOME = Welcome(1, 0, 11, 0, "c", 5, 1, 0.5, 3.0, Roster((ME,)), 1, B)


def member(*addresses: str) -> Allegiance:
    found = Allegiance(Session(Hello("w", 1, "tcp://w:1")), addresses)
    found.handle(Start(), 0.0)
    return found


def test_while_it_joins_it_asks_all_and_stays_with_who_answers() -> None:
    found = Allegiance(Session(Hello("w", 1, "tcp://w:1")), (A, B))
    (hello,) = found.handle(Start(), 0.0)
    assert hello == Dispatch(Hello("w", 1, "tcp://w:1"), (A, B))
    assert found.handle(LineArrival(B, Elsewhere(A, 5)), 0.1) == []
    effects = found.handle(LineArrival(A, WELCOME), 0.2)
    assert CloseLine(B) in effects
    assert found.current == A
    (beat,) = found.handle(Tick(), 0.8)
    assert isinstance(beat, Dispatch)
    assert isinstance(beat.message, Beat)
    assert beat.addresses == (A,)


def test_a_standby_names_one_that_it_did_not_know() -> None:
    assert member(B, "tcp://c:1").handle(LineArrival(B, Elsewhere(A, 5)), 0.1) == [OpenLine(A)]


def test_one_broker_is_left_alone() -> None:
    found = member(A)
    found.handle(LineArrival(A, Welcome(1, 0, 11, 0, "c", 5, 1, 0.5, 3.0, Roster((ME,)))), 0.1)
    found.handle(LineChange(A, "disconnected"), 1.0)
    assert found.handle(Tick(), 9.0) == []


def lost() -> Allegiance:
    """A member of A that has lost it, and is connected to B."""
    found = member(A)
    found.handle(LineArrival(A, WELCOME), 0.1)
    found.handle(LineChange(A, "disconnected"), 1.0)
    assert found.next_deadline() == 1.5
    assert found.handle(Tick(), 1.5) == [OpenLine(B)]
    assert found.handle(LineChange(B, "connected"), 1.6) == [Dispatch(Vote(5), (B,))]
    return found


def test_a_lost_broker_is_told_to_the_standby_again_and_again() -> None:
    found = lost()
    assert found.handle(Tick(), 1.75) == [Dispatch(Vote(5), (B,))]


def test_it_goes_over_to_who_is_in_charge_with_a_higher_epoch_only() -> None:
    found = lost()
    assert found.handle(LineArrival(B, Challenge(5)), 2.0) == []
    close, hello = found.handle(LineArrival(B, Challenge(9)), 2.1)
    assert close == CloseLine(A)
    assert isinstance(hello, Dispatch)
    assert isinstance(hello.message, Hello)
    assert (hello.message.incarnation, hello.addresses) == (11, (B,))


def test_it_takes_its_word_back_when_its_broker_is() -> None:
    found = lost()
    found.handle(LineChange(A, "connected"), 2.0)
    assert found.handle(Tick(), 2.1)[-1] == Dispatch(Vote(5), (B,))  # a connection alone is no broker
    effects = found.handle(LineArrival(A, WELCOME), 2.2)
    assert effects[:2] == [Dispatch(Vote(5, False), (B,)), CloseLine(B)]
    assert found.current == A


def test_what_was_sent_before_the_connection_broke_does_not_count() -> None:
    found = member(A)
    found.handle(LineArrival(A, WELCOME), 0.1)
    found.handle(LineChange(A, "disconnected"), 1.0)
    found.handle(LineArrival(A, Goodbye("the broker has stopped")), 1.0)
    assert found.handle(Tick(), 1.5) == [OpenLine(B)]


def test_a_broker_that_has_stepped_down_is_lost_at_once() -> None:
    found = member(A)
    found.handle(LineArrival(A, WELCOME), 0.1)
    assert found.handle(LineArrival(A, Elsewhere(B, 9)), 1.0) == [OpenLine(B)]


def test_who_has_left_looks_for_nobody() -> None:
    found = member(A)
    found.handle(LineArrival(A, WELCOME), 0.1)
    found.handle(Departure(), 0.5)
    found.handle(LineChange(A, "disconnected"), 1.0)
    assert found.handle(Tick(), 2.0) == []
    assert found.next_deadline() is None
