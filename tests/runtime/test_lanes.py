"""Lanes between workers of one host: agreed on, used, done without, and ended."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zrpc.clock import monotonic
from zrpc.errors import CallTimeout, WorkerLost
from zrpc.options import AgentOptions
from zrpc.runtime.agent import Agent
from zrpc.runtime.exchanges import LocalLane
from zrpc.runtime.lanes import Lanes
from zrpc.runtime.receiver import Receiver
from zrpc.testing import LocalCluster
from zrpc.transport.samehost import MAX_UNPROVEN, Newcomer, connect_local, new_secret
from zrpc.wire.limits import Limits

LONG = 20.0  # reached only by a failure


@pytest.fixture(autouse=True)
def lanes_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZRPC_LANES", raising=False)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(network="curve") as started:
        yield started


def wait_for(condition: Any) -> None:
    """Wait until it holds. Each look is a little later, and none comes after the deadline."""
    deadline = monotonic() + LONG
    pause = threading.Event()
    while not condition():
        assert monotonic() < deadline
        pause.wait(0.002)


def has_lane(agent: Agent, to: str) -> bool:
    return agent.peers.find(to)._local is not None


def join_by_lane(cluster: LocalCluster, one: str = "a", other: str = "b") -> None:
    """Make calls until the lane is there that the first one asks for."""

    def call() -> bool:
        assert cluster[one].rpc_sync(other, torch.add, (torch.ones(1), 1)).item() == 2
        return has_lane(cluster[one].agent, other)

    wait_for(call)


def messages_over_zeromq(cluster: LocalCluster, name: str) -> int:
    return cluster[name].agent.listener.statistics().messages_in


def echo(value: Any) -> Any:
    return value


class Gate:
    """Lets a function wait for a test."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()


gate = Gate()


@pytest.fixture
def fresh_gate() -> Iterator[Gate]:
    global gate
    gate = Gate()
    yield gate
    gate.open.set()


def pass_gate(value: int) -> int:
    gate.begun.release()
    gate.open.wait(LONG)
    return value


def test_calls_go_by_lane(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    a = cluster["a"]
    before = messages_over_zeromq(cluster, "b")
    for n in range(5):
        assert a.rpc_sync("b", echo, (n,)) == n
    futures = [a.rpc_async("b", echo, (n,)) for n in range(500)]
    assert [future.wait() for future in futures] == list(range(500))
    reference = a.remote("b", torch.add, (torch.ones(2), 1))
    assert reference.to_here().tolist() == [2, 2]
    assert messages_over_zeromq(cluster, "b") == before


def test_both_ways_at_once(cluster: LocalCluster) -> None:
    join_by_lane(cluster, "a", "b")
    join_by_lane(cluster, "b", "a")
    there = [cluster["a"].rpc_async("b", echo, (n,)) for n in range(200)]
    back = [cluster["b"].rpc_async("a", echo, (-n,)) for n in range(200)]
    assert [future.wait() for future in there] == list(range(200))
    assert [future.wait() for future in back] == [-n for n in range(200)]


@pytest.mark.parametrize("size", [0, 10, 16_000, 70_000, 5_000_000])
def test_messages_of_all_sizes(cluster: LocalCluster, size: int) -> None:
    join_by_lane(cluster)
    tensor = torch.arange(size, dtype=torch.int32)
    for _ in range(2):
        answer = cluster["a"].rpc_sync("b", echo, ([tensor, tensor[: size // 2].clone()],))
        assert torch.equal(answer[0], tensor)
        assert torch.equal(answer[1], tensor[: size // 2])
        answer[0] += 1  # what arrives is writable, and the receiver's own
        assert torch.equal(tensor, torch.arange(size, dtype=torch.int32))
    answer = cluster["a"].rpc_async("b", echo, (tensor,)).wait()
    assert torch.equal(answer, tensor)


def test_many_large_ones_at_once_are_all_answered(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    tensor = torch.ones(500_000)
    futures = [cluster["a"].rpc_async("b", echo, (tensor * n,)) for n in range(20)]
    assert [future.wait()[0].item() for future in futures] == list(range(20))


def test_a_short_call_passes_long_ones(cluster: LocalCluster, fresh_gate: Gate) -> None:
    join_by_lane(cluster)
    a = cluster["a"]
    held = [a.rpc_async("b", pass_gate, (n,)) for n in range(6)]
    for _ in held:
        assert fresh_gate.begun.acquire(timeout=LONG)
    assert a.rpc_async("b", echo, ("short",)).wait() == "short"
    fresh_gate.open.set()
    assert [future.wait() for future in held] == list(range(6))


def test_a_late_reply_on_a_lane(cluster: LocalCluster, fresh_gate: Gate) -> None:
    join_by_lane(cluster)
    with pytest.raises(CallTimeout):
        cluster["a"].rpc_sync("b", pass_gate, (1,), timeout=0.05)
    fresh_gate.open.set()
    assert cluster["a"].rpc_sync("b", echo, (2,)) == 2


def test_off_by_option_and_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(network="curve", options=AgentOptions(init_timeout=LONG, lanes=False)) as cluster:
        assert cluster["a"].agent.lanes.mark is None
        assert cluster["a"].rpc_sync("b", echo, (1,)) == 1
        assert not has_lane(cluster["a"].agent, "b")
    monkeypatch.setenv("ZRPC_LANES", "off")
    with LocalCluster(network="tcp") as cluster:
        assert cluster["a"].agent.lanes.mark is None
        assert cluster["a"].rpc_sync("b", echo, (1,)) == 1


def test_one_side_has_none() -> None:
    off = AgentOptions(init_timeout=LONG, lanes=False)
    with LocalCluster(network="curve", options_of={"b": off}) as cluster:
        a = cluster["a"].agent
        assert a.ask("b", a.lanes.question(), LONG) == {}
        assert cluster["a"].rpc_sync("b", echo, (1,)) == 1
        assert not has_lane(a, "b")


def test_another_host_is_offered_nothing(cluster: LocalCluster) -> None:
    agent = cluster["a"].agent
    assert agent.ask("b", {"what": "lane", "host": b"x" * 32}, LONG) == {}
    assert agent.ask("b", {"what": "lane"}, LONG) == {}
    offer = agent.ask("b", agent.lanes.question(), LONG)
    assert set(offer) == {"address", "memory", "secret"}
    assert agent.ask("b", agent.lanes.question(), LONG) == offer
    assert agent.lanes.connect({**offer, "address": "zrpc-nobody"}, (1, 1)) is None
    assert agent.lanes.connect({**offer, "address": 5}, (1, 1)) is None
    assert agent.lanes.connect({}, (1, 1)) is None


def test_a_wrong_secret_is_closed_unread(cluster: LocalCluster) -> None:
    agent = cluster["a"].agent
    offer = agent.ask("b", agent.lanes.question(), LONG)
    wrong = offer["secret"][:8] + new_secret()[8:]
    for secret in (new_secret(), wrong):
        link = connect_local(offer["address"], secret)
        wait_for(lambda link=link: link.receive() is None and link.is_ended)
        link.close()
    assert cluster["b"].agent.refused == {}


def test_many_strangers_do_not_keep_others_out(cluster: LocalCluster) -> None:
    agent = cluster["a"].agent
    offer = agent.ask("b", agent.lanes.question(), LONG)
    strangers = []
    for _ in range(100):
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stranger.settimeout(LONG)
        stranger.connect("\0" + offer["address"])
        strangers.append(stranger)
    assert strangers[0].recv(1) == b""  # the oldest had to go
    join_by_lane(cluster)
    for stranger in strangers:
        stranger.close()


def test_a_worker_dies(cluster: LocalCluster, fresh_gate: Gate) -> None:
    join_by_lane(cluster)
    a = cluster["a"]
    errors: list[BaseException] = []

    def call() -> None:
        try:
            a.rpc_sync("b", pass_gate, (1,))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert fresh_gate.begun.acquire(timeout=LONG)
    waiting = a.rpc_async("b", pass_gate, (2,))
    assert fresh_gate.begun.acquire(timeout=LONG)
    peer = a.agent.peers.find("b")
    cluster["b"].agent.lanes.close()  # as when its process has ended
    wait_for(lambda: peer._local is None)
    assert peer.lost is None  # the broker decides
    assert thread.is_alive()
    assert not waiting.done()
    killer = threading.Thread(target=cluster.kill, args=("b",))
    killer.start()
    wait_for(lambda: peer.lost is not None)
    thread.join(LONG)
    with pytest.raises(WorkerLost):
        waiting.wait()
    assert [type(error) for error in errors] == [WorkerLost]
    fresh_gate.open.set()
    killer.join(LONG)


def test_the_next_life_is_met_anew(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    peer = cluster["a"].agent.peers.find("b")
    cluster.stop("b")
    wait_for(lambda: peer.lost is not None)
    cluster.start("b")
    wait_for(lambda: cluster["a"].agent.client.members_by_name.get("b") is not None)
    join_by_lane(cluster)
    before = messages_over_zeromq(cluster, "b")
    assert cluster["a"].rpc_sync("b", echo, (1,)) == 1
    assert messages_over_zeromq(cluster, "b") == before


def test_zeromq_takes_over_when_a_lane_ends(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    a, b = cluster["a"], cluster["b"]
    a.rpc_sync("b", echo, (1,))
    b.agent.lanes.close()  # ends them all, while the worker lives
    wait_for(lambda: not has_lane(a.agent, "b"))
    before = messages_over_zeromq(cluster, "b")
    assert a.rpc_sync("b", echo, (1,)) == 1
    assert a.rpc_async("b", echo, (2,)).wait() == 2
    assert messages_over_zeromq(cluster, "b") > before


def test_lanes_come_back(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    b = cluster["b"].agent
    wait_for(lambda: b.lanes._served)
    for link in list(b.lanes._served):
        b.lanes._drop(link)
    wait_for(lambda: not has_lane(cluster["a"].agent, "b"))
    join_by_lane(cluster)


def test_nothing_is_left_open(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    peer = cluster["a"].agent.peers.find("b")
    cluster["a"].rpc_sync("b", echo, (1,))
    (lane,) = [lane for lane in peer._idle if isinstance(lane, LocalLane)]
    served = list(cluster["b"].agent.lanes._served)
    assert len(served) == 2
    cluster.stop("a")
    wait_for(lambda: not cluster["b"].agent.lanes._served and not cluster["b"].agent.lanes._secrets)
    assert lane.link._closed
    assert all(link._closed for link in served)


def test_a_closed_book_of_lanes_offers_nothing() -> None:
    receiver = Receiver()
    lanes = Lanes(receiver, Limits(), lambda *_: None, lambda *_: None, True)
    offer = lanes.offer(lanes.question(), (1, 1))
    assert offer
    lanes.close()
    assert lanes.offer(lanes.question(), (1, 1)) == {}
    assert lanes.connect(offer, (1, 1)) is None
    receiver.close()


class _Eager:
    """A receiver whose other threads handle what comes before `add` has returned, as they may when a handler is slow."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def add(self, end: Any, handle: Any) -> Any:
        def run() -> None:
            try:
                message = end.receive()
                while isinstance(end, Newcomer) and message is None:
                    message = end.receive()
                if message is not None:
                    handle(message)
            except BaseException as error:
                self.failures.append(error)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        self.threads[-1].join(0.01)
        return object()

    def remove(self, source: Any) -> None:
        pass


def test_newcomers_are_heard_by_several_threads_at_once() -> None:
    receiver = _Eager()
    lanes = Lanes(receiver, Limits(), lambda *_: None, lambda *_: None, True)  # type: ignore[arg-type]
    offer = lanes.offer(lanes.question(), (1, 1))
    late = []
    for _ in range(8):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect("\0" + offer["address"])
        while (newcomer := lanes._listener.receive()) is None:  # type: ignore[union-attr]
            pass
        greeting = threading.Thread(target=lanes._greet, args=(newcomer,))
        greeting.start()
        greeting.join()
        connection.send(offer["secret"] + b"M")
        late.append(connection)
    for thread in receiver.threads:
        thread.join(LONG)
    assert receiver.failures == []
    assert len(lanes._served) == 8
    assert not lanes._newcomers
    lanes.close()
    for connection in late:
        connection.close()


def test_a_crowd_that_has_said_its_secret_is_let_in_whole() -> None:
    """Those who connect at the same moment are more than may be unproven: the oldest had to go, unheard."""
    receiver = Receiver()
    lanes = Lanes(receiver, Limits(), lambda *_: None, lambda *_: None, True)
    offer = lanes.offer(lanes.question(), (1, 1))
    crowd = [connect_local(offer["address"], offer["secret"]) for _ in range(MAX_UNPROVEN + 20)]
    for _ in crowd:
        lanes._greet(lanes._listener.receive())  # type: ignore[union-attr, arg-type]
    assert len(lanes._served) == len(crowd)
    lanes.close()
    for link in crowd:
        link.close()
    receiver.close()


# ------------------------------------------------------------------------------------ shared memory

LARGE = 1 << 20  # bytes


def lent(cluster: LocalCluster, name: str) -> int:
    """Segments of a worker that are with others."""
    return sum(len(bulk._lent) for bulk in cluster[name].agent.lanes._bulks)


kept: list[torch.Tensor] = []


def keep(value: torch.Tensor) -> None:
    kept.append(value)


def test_large_tensors_live_in_shared_memory(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    a = cluster["a"]
    tensor = torch.arange(LARGE, dtype=torch.int64).to(torch.uint8)
    answer = a.rpc_sync("b", echo, (tensor,))
    assert torch.equal(answer, tensor)
    assert lent(cluster, "b") == 1
    answer += 1  # the receiver's own
    assert torch.equal(a.rpc_sync("b", echo, (tensor,)), tensor)
    assert torch.equal(answer, tensor + 1)
    del answer
    wait_for(lambda: lent(cluster, "a") + lent(cluster, "b") == 0)
    for n in range(20):
        assert a.rpc_async("b", echo, (tensor * 0 + n,)).wait()[5].item() == n
    assert a.agent.lanes.pool.used <= 8 * LARGE


def test_what_the_receiver_keeps_is_not_used_again(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    try:
        for n in range(5):
            cluster["a"].rpc_sync("b", keep, (torch.full((LARGE,), n, dtype=torch.uint8),))
        assert [tensor[7].item() for tensor in kept] == list(range(5))
        assert lent(cluster, "a") == 5
        kept.clear()
        wait_for(lambda: lent(cluster, "a") == 0)
    finally:
        kept.clear()


def test_a_full_pool_falls_back_to_the_socket() -> None:
    small = AgentOptions(init_timeout=LONG, shared_memory_bytes=2 * LARGE)
    with LocalCluster(network="curve", options=small) as cluster:
        join_by_lane(cluster)
        try:
            for n in range(5):
                cluster["a"].rpc_sync("b", keep, (torch.full((LARGE,), n, dtype=torch.uint8),))
            assert [tensor[7].item() for tensor in kept] == list(range(5))
            assert lent(cluster, "a") == 2
            assert cluster["a"].agent.lanes.pool.used == 2 * LARGE
        finally:
            kept.clear()


def test_without_shared_memory() -> None:
    none = AgentOptions(init_timeout=LONG, shared_memory_bytes=0)
    with LocalCluster(network="curve", options=none) as cluster:
        join_by_lane(cluster)
        tensor = torch.arange(3 * LARGE, dtype=torch.int32)
        assert torch.equal(cluster["a"].rpc_sync("b", echo, (tensor,)), tensor)
        assert cluster["b"].agent.lanes._bulks == {}


def test_views_of_one_storage_in_shared_memory(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    base = torch.arange(LARGE, dtype=torch.float32)
    first, second = cluster["a"].rpc_sync("b", echo, ([base[10:], base.view(1024, 1024).t()],))
    assert torch.equal(first, base[10:])
    assert torch.equal(second, base.view(1024, 1024).t())
    first[0] = -1  # element 10 of the storage
    assert second[10, 0].item() == -1


def test_parameters_and_gradients_in_shared_memory(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    module = torch.nn.Linear(600, 600)
    answer = cluster["a"].rpc_sync("b", echo, (module,))
    answer(torch.ones(600)).sum().backward()
    with torch.no_grad():
        answer.weight -= 0.1 * answer.weight.grad
    assert torch.allclose(answer.weight, module.weight - 0.1)


def test_the_lender_dies(cluster: LocalCluster) -> None:
    join_by_lane(cluster)
    tensor = torch.arange(LARGE, dtype=torch.int64).to(torch.uint8)
    answer = cluster["a"].rpc_sync("b", echo, (tensor,))
    peer = cluster["a"].agent.peers.find("b")
    cluster.kill("b")
    wait_for(lambda: peer.lost is not None)
    wait_for(lambda: cluster["a"].agent.lanes.pool.used == 0)
    assert torch.equal(answer, tensor)


def test_a_lane_with_a_late_reply_ends_with_its_worker(cluster: LocalCluster, fresh_gate: Gate) -> None:
    join_by_lane(cluster)
    peer = cluster["a"].agent.peers.find("b")
    with pytest.raises(CallTimeout):
        cluster["a"].rpc_sync("b", pass_gate, (1,), timeout=0.05)
    assert len(peer._strays) == 1
    cluster["b"].agent.lanes.close()
    wait_for(lambda: peer._strays == [])  # else its descriptor would be readable for ever
    fresh_gate.open.set()


def test_a_large_call_that_is_given_up_leaves_whole(fresh_gate: Gate) -> None:
    none = AgentOptions(init_timeout=LONG, shared_memory_bytes=0, num_worker_threads=1)
    with LocalCluster(network="curve", options=none) as cluster:
        join_by_lane(cluster)
        peer = cluster["a"].agent.peers.find("b")
        tensor = torch.zeros(32 << 20, dtype=torch.uint8)
        with pytest.raises(CallTimeout):
            cluster["a"].rpc_sync("b", echo, (tensor,), timeout=1e-4)
        for lane, _ in list(peer._strays):
            wait_for(lambda lane=lane: not lane.link.has_backlog())
        assert cluster["a"].rpc_sync("b", echo, (5,)) == 5
        assert cluster["b"].agent.refused == {}


def test_an_offer_that_is_made_while_a_worker_ends_leaves_no_socket() -> None:
    """`close` runs between the look whether it has, and the making of the listener; the agent calls it again."""
    with LocalCluster(("a",), network="tcp") as cluster:
        lanes = cluster["a"].agent.lanes
        if lanes.mark is None:
            return  # lanes are off
        lanes.close()
        lanes._is_closed = False  # as `offer` saw it
        answer = lanes.offer(lanes.question(), (1, 1))
        assert answer["address"]
        lanes.close()
        assert lanes._listener is not None
        assert lanes._listener.fileno() == -1
