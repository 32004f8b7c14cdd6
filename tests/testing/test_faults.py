"""Fault plans: each fault, what it matches, that a seed does the same again, on each transport and whole clusters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

import zrpc
import zrpc.testing
from zrpc.errors import CallTimeout, ConfigError, Unavailable, WorkerLost, ZrpcError
from zrpc.options import AgentOptions
from zrpc.protocol.membership import RegistryOptions
from zrpc.testing import BROKER, FaultPlan, LocalCluster, ManualTimer
from zrpc.testing.faulty import FaultyLink, FaultyListener
from zrpc.transport.base import Transport
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.poller import Ear
from zrpc.transport.router import ZmqTransport
from zrpc.wire.envelope import Envelope, Kind, pack, unpack
from zrpc.wire.messages import Member

LONG = 20.0  # reached only by a failure
SHORT = 0.3  # of calls that are to run out of time


class Pair:
    """A listener of worker b, and a link of worker a to it, on a network with a plan."""

    def __init__(self, plan: FaultPlan, kind: str) -> None:
        self.plan = plan
        network = MemoryNetwork()
        make: Callable[[], Transport] = lambda: (  # noqa: E731
            MemoryTransport(network) if kind == "memory" else ZmqTransport(None, "member")
        )
        self.transports = [plan.wrap(make(), "a"), plan.wrap(make(), "b")]
        address = "memory://0" if kind == "memory" else "tcp://127.0.0.1:0"
        self.listener: FaultyListener = self.transports[1].listen(address, "member")
        plan.names.learn(Member("a", 0, 1, 0, "memory://a"))
        self.link: FaultyLink = self.transports[0].connect(self.listener.address, "member")
        self.ears = [Ear(self.link), Ear(self.listener)]

    def send(self, *numbers: int, kind: Kind = Kind.CALL) -> None:
        for number in numbers:
            self.link.send(pack(Envelope(kind, number, sender=0)))

    def receive(self, count: int) -> list[int]:
        """The message ids of the next `count` messages."""
        found: list[int] = []
        while len(found) < count:
            received = self.listener.receive()
            if received is None:
                assert self.ears[1].wait(LONG), found
                continue
            self.route = received.route
            found.append(unpack(received.frames).message_id)
        return found

    def receive_all(self) -> list[int]:
        """Those up to a mark that no fault touches."""
        self.send(0, kind=Kind.INSPECT)
        found: list[int] = []
        while not found or found[-1] != 0:
            found += self.receive(1)
        return found[:-1]

    def close(self) -> None:
        for ear in self.ears:
            ear.close()
        for transport in self.transports:
            transport.close()
        self.plan.close()


@pytest.fixture(params=["memory", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(FaultPlan(seed=3, timer=ManualTimer()), request.param)
    yield made
    made.close()


def timer_of(pair: Pair) -> ManualTimer:
    assert isinstance(pair.plan.timer, ManualTimer)
    return pair.plan.timer


# --------------------------------------------------------------------------------------------- each fault


def test_without_rules_nothing_happens(pair: Pair) -> None:
    pair.send(1, 2, 3)
    assert pair.receive(3) == [1, 2, 3]
    assert pair.plan.counts() == {}


def test_drop(pair: Pair) -> None:
    fault = pair.plan.drop(kinds="CALL", count=2)
    pair.send(1, 2, 3)
    assert pair.receive_all() == [3]
    assert fault.injected == 2
    fault.end()
    pair.send(4)
    assert pair.receive_all() == [4]


def test_drop_with_a_probability_is_the_same_for_a_seed() -> None:
    def what_is_left(seed: int) -> list[int]:
        pair = Pair(FaultPlan(seed, ManualTimer()), "memory")
        pair.plan.drop(0.5, kinds="CALL")
        pair.send(*range(1, 101))
        left = pair.receive_all()
        pair.close()
        return left

    assert what_is_left(1) == what_is_left(1) != what_is_left(2)
    assert 25 < len(what_is_left(1)) < 75


def test_what_happens_does_not_depend_on_other_ways() -> None:
    """Threads of other workers, and other kinds, may come in between: the same messages are hit."""

    def hits(between: int) -> list[int]:
        plan = FaultPlan(5, ManualTimer())
        plan.drop(0.5, kinds="CALL")
        call, other = pack(Envelope(Kind.CALL)), pack(Envelope(Kind.REPLY))
        found = []
        for number in range(50):
            for _ in range(between):
                plan.judge(other, "a", "b")
                plan.judge(call, "c", "b")
            if plan.judge(call, "a", "b") is not None:
                found.append(number)
        return found

    assert hits(0) == hits(3) != []


def test_a_delay_keeps_the_order(pair: Pair) -> None:
    pair.plan.delay(2.0, kinds="CALL", count=1)
    pair.send(1, 2)
    pair.send(3, kind=Kind.REPLY)
    timer = timer_of(pair)
    timer.advance(1.9)
    assert pair.listener.receive() is None
    timer.advance(0.2)
    assert pair.receive(3) == [1, 2, 3]
    pair.send(4)
    assert pair.receive(1) == [4]
    assert timer.waiting() == 0


def test_reordered_messages_are_overtaken(pair: Pair) -> None:
    pair.plan.reorder(within=1.0, kinds="CALL", count=1)
    pair.send(1, 2, 3)
    assert pair.receive(2) == [2, 3]
    timer_of(pair).advance(1.0)
    assert pair.receive(1) == [1]


def test_duplicates(pair: Pair) -> None:
    pair.plan.duplicate(kinds="CALL", count=1)
    pair.plan.duplicate(kinds="REPLY", after=5.0)
    pair.send(1)
    pair.send(2, kind=Kind.REPLY)
    assert pair.receive_all() == [1, 1, 2]
    timer_of(pair).advance(5.0)
    assert pair.receive_all() == [2]


def test_corruption_changes_a_copy(pair: Pair) -> None:
    pair.plan.corrupt(kinds="CALL")
    frames = pack(Envelope(Kind.CALL, 1, sender=0, body=b"x" * 100, buffers=[b"y" * 20_000]))
    before = [bytes(frame) for frame in frames]
    pair.link.send(frames)
    pair.send(0, kind=Kind.INSPECT)
    found: list[list[bytes]] = []
    while len(found) < 2:
        received = pair.listener.receive()
        if received is None:
            assert pair.ears[1].wait(LONG)
        else:
            found.append([bytes(frame) for frame in received.frames])
    assert [bytes(frame) for frame in frames] == before
    assert [len(frame) for frame in found[0]] == [len(frame) for frame in before]
    changed = sum(a != b for got, was in zip(found[0], before, strict=True) for a, b in zip(got, was, strict=True))
    assert 1 <= changed <= 4


def test_a_partition_cuts_both_directions(pair: Pair) -> None:
    pair.send(1)
    assert pair.receive(1) == [1]
    with pair.plan.partition("a", "b"):
        pair.send(2)
        pair.listener.send(pair.route, pack(Envelope(Kind.REPLY, 2)))
    pair.send(3)
    assert pair.receive(1) == [3]
    pair.listener.send(pair.route, pack(Envelope(Kind.REPLY, 3)))
    while (frames := pair.link.receive()) is None:
        assert pair.ears[0].wait(LONG)
    assert unpack(frames).message_id == 3


def test_what_is_late_wakes_who_waits(pair: Pair) -> None:
    """Sent from another thread: the descriptor of the receiving end becomes readable even so."""
    pair.plan.delay(1.0)
    pair.send(1)
    thread = threading.Thread(target=lambda: timer_of(pair).advance(1.0))
    thread.start()
    assert pair.receive(1) == [1]
    thread.join()


def test_what_is_late_for_a_closed_connection_is_forgotten(pair: Pair) -> None:
    pair.plan.delay(1.0)
    pair.send(1)
    pair.link.close()
    pair.link.close()
    timer_of(pair).advance(1.0)
    pair.plan.heal()
    with pytest.raises(Unavailable):
        pair.send(2)


def test_a_bell_rings_for_an_edge_that_a_late_message_consumed(pair: Pair) -> None:
    pair.plan.delay(1.0)
    deliver: list[bool] = []
    pair.link._way.send(pack(Envelope(Kind.CALL, 1)), lambda frames: deliver.append(True) or True)
    timer_of(pair).advance(1.0)
    assert deliver == [True]
    assert pair.ears[0].wait(0.0)
    assert pair.link.receive() is None
    assert not pair.ears[0].wait(0.0)


# ------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        ({}, True),
        ({"kinds": "CALL"}, True),
        ({"kinds": [Kind.REPLY, "call"]}, True),
        ({"kinds": "REPLY"}, False),
        ({"sender": "a"}, True),
        ({"sender": "b"}, False),
        ({"sender": "w*"}, False),
        ({"receiver": ["c", "?"]}, True),
        ({"receiver": BROKER}, False),
        ({"sender": "a", "receiver": "b", "kinds": "CALL"}, True),
        ({"count": 0}, False),
        ({"probability": 0.0}, False),
    ],
)
def test_what_a_rule_matches(rule: dict[str, object], hit: bool) -> None:
    plan = FaultPlan()
    plan.drop(**rule)  # type: ignore[arg-type]
    assert (plan.judge(pack(Envelope(Kind.CALL)), "a", "b") is not None) is hit


@pytest.mark.parametrize(
    ("one", "other", "one_way", "cut"),
    [
        ("a", "b", False, {"a>b", "b>a"}),
        ("a", None, False, {"a>b", "b>a", "a>c", "c>a"}),
        (["a", "b"], "c", False, {"a>c", "c>a", "b>c", "c>b"}),
        ("a", "b", True, {"a>b"}),
    ],
)
def test_what_a_partition_cuts(one: str, other: str | None, one_way: bool, cut: set[str]) -> None:
    plan = FaultPlan()
    plan.partition(one, other, one_way=one_way)
    frames = pack(Envelope(Kind.CALL))
    ways = [(s, r) for s in "abc" for r in "abc" if s != r]
    assert {f"{s}>{r}" for s, r in ways if plan.judge(frames, s, r) is not None} == cut


def test_wrong_rules() -> None:
    plan = FaultPlan()
    with pytest.raises(ConfigError, match="there is no kind CALLS"):
        plan.drop(kinds="CALLS")
    with pytest.raises(ConfigError, match="from 0 to 1, not 7"):
        plan.drop(7)


def test_the_record() -> None:
    plan = FaultPlan(seed=4)
    plan.drop(kinds="CALL", count=1)
    plan.duplicate()
    frames = pack(Envelope(Kind.CALL))
    plan.judge(frames, "a", "b")
    plan.judge(frames, "a", "b")
    assert [(entry.action, entry.number) for entry in plan.injected()] == [("drop", 0), ("duplicate", 1)]
    assert plan.counts() == {"drop": 1, "duplicate": 1}
    assert repr(plan) == "<FaultPlan seed=4 injected: 1 drop, 1 duplicate>"


def test_what_cannot_be_read_is_matched_by_name_only() -> None:
    plan = FaultPlan()
    plan.drop(kinds="CALL")
    assert plan.judge([b"noise"], "a", "b") is None
    plan.drop(sender="a")
    assert plan.judge([b"noise"], "a", "b") is not None


# ------------------------------------------------------------------------------------------- whole clusters


@pytest.fixture(params=["memory", "curve"])
def network(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_lost_reply_ends_a_call_at_its_deadline(network: str) -> None:
    plan = FaultPlan()
    with LocalCluster(["a", "b"], network, faults=plan) as cluster:
        one = torch.ones(1)
        plan.drop(kinds="REPLY", sender="b", receiver="a", count=2)
        with pytest.raises(CallTimeout):
            cluster["a"].rpc_sync("b", torch.add, args=(one, 1), timeout=SHORT)
        with pytest.raises(CallTimeout):
            cluster["a"].rpc_async("b", torch.add, args=(one, 1), timeout=SHORT).wait()
        assert cluster["a"].rpc_sync("b", torch.add, args=(one, 1)) == 2
        assert cluster["b"].rpc_sync("a", torch.add, args=(one, 1)) == 2
    assert plan.counts() == {"drop": 2}
    assert {(entry.kind, entry.sender, entry.receiver) for entry in plan.injected()} == {("REPLY", "b", "a")}


def test_late_and_overtaken_replies_reach_their_calls(network: str) -> None:
    plan = FaultPlan(seed=11)
    with LocalCluster(["a", "b"], network, faults=plan) as cluster:
        plan.reorder(0.05, 0.7, kinds=["CALL", "REPLY"])
        plan.delay(0.0, 0.02, 0.5)
        futures = [cluster["a"].rpc_async("b", torch.add, args=(torch.tensor(i), i)) for i in range(40)]
        assert [int(future.wait()) for future in futures] == [2 * i for i in range(40)]
        assert [int(cluster["a"].rpc_sync("b", torch.add, args=(torch.tensor(i), i))) for i in range(5)] == [
            2 * i for i in range(5)
        ]
    assert plan.counts()["reorder"] > 0


def test_references_outlive_lost_and_doubled_messages(network: str) -> None:
    plan = FaultPlan(seed=2)
    kinds = ["ACK", "RREF_FORK_REQUEST", "RREF_CHILD_ACCEPT", "RREF_USER_DELETE", "RREF_FORK_NOTICE"]
    with LocalCluster(["a", "b", "c"], network, faults=plan) as cluster:
        plan.drop(0.3, kinds=[*kinds, "RREF_CREATION_NOTICE"])
        plan.duplicate(0.3, kinds=kinds)
        for number in range(5):
            made = cluster["a"].remote("b", torch.add, args=(torch.tensor(number), 1))
            assert cluster["a"].rpc_sync("c", fetch, args=(made,)) == number + 1
        del made
        for name in "ac":
            cluster[name].agent.references.wait_drained(None)
        assert plan.counts()["drop"] > 0


def fetch(reference: object) -> object:
    return reference.to_here()  # type: ignore[attr-defined]


def test_a_worker_that_is_cut_off_from_all_is_declared_dead(network: str) -> None:
    plan = FaultPlan()
    patience = RegistryOptions(heartbeat_interval=0.05, silence_timeout=0.5, death_timeout=0.5)
    with LocalCluster(["a", "b"], network, broker_options=patience, faults=plan) as cluster:
        cut = plan.partition("b")
        with pytest.raises(WorkerLost, match="'b'"):
            cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1), timeout=LONG)
        cut.end()
        assert cluster["b"].agent.stop_requested.wait(LONG), "it is told that its life is over"
        assert cluster["b"].agent.fenced is not None


def test_damaged_messages_end_no_worker(network: str) -> None:
    """A call may fail in any typed way, or run out of time; the workers serve on."""
    plan = FaultPlan(seed=9)
    options = AgentOptions(init_timeout=LONG, codecs=("script", "builtin"))
    with LocalCluster(["a", "b"], network, options=options, faults=plan) as cluster:
        with plan.corrupt(kinds=["CALL", "REPLY"]):
            calls = [
                cluster["a"].rpc_async("b", torch.add, args=(torch.ones(3), 1), timeout=2 * SHORT) for _ in range(40)
            ]
            ends = {how_it_ends(call.wait) for call in calls}
        assert all(issubclass(end, (ZrpcError, RuntimeError)) for end in ends if end is not None), ends
        assert cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2
    assert plan.counts()["corrupt"] >= 40


def test_a_worker_of_a_real_cluster_takes_a_plan() -> None:
    plan = FaultPlan()
    with LocalCluster(["b"], "tcp") as cluster:
        assert cluster.broker is not None
        options = AgentOptions(security=False, init_timeout=LONG)
        zrpc.init_rpc("a", broker=cluster.broker.address, options=options, wrap_transport=plan.for_worker("a"))
        try:
            plan.drop(kinds="CALL", receiver="b", count=1)
            with pytest.raises(CallTimeout):
                zrpc.rpc_sync("b", torch.add, args=(torch.ones(1), 1), timeout=SHORT)
            assert zrpc.rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2
        finally:
            zrpc.shutdown(graceful=False)
    assert plan.counts() == {"drop": 1}


def how_it_ends(wait: Callable[[], object]) -> type[BaseException] | None:
    try:
        wait()
    except Exception as error:
        return type(error)
    return None


def test_what_is_public() -> None:
    assert {"BROKER", "FaultPlan", "LocalCluster", "ManualTimer"} <= set(zrpc.testing.__all__)
