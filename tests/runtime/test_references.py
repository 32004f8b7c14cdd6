"""References between real agents: made, passed on, fetched, dropped, lost."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from zrpc.clock import wall
from zrpc.errors import CallTimeout, CodecRefused, RRefLost, RRefMisuse
from zrpc.options import AgentOptions
from zrpc.protocol.effects import BrokerBack, BrokerLost
from zrpc.protocol.rrefs import Peer as Life
from zrpc.protocol.strangers import PATIENCE
from zrpc.rref import RRef
from zrpc.runtime.context import current_agent
from zrpc.testing import LocalCluster
from zrpc.wire.envelope import Kind

LONG = 20.0


@torch.jit.script
def total(x: torch.Tensor, factor: float = 1.0) -> float:
    return float(x.sum()) * factor


@torch.jit.script
def ones(count: int) -> torch.Tensor:
    return torch.ones(count)


def make_list(n: int) -> list[int]:
    return list(range(n))


def fetch(reference: RRef[Any]) -> Any:
    return reference.to_here()


def hand_back(reference: RRef[Any]) -> RRef[Any]:
    return reference


def is_confirmed(reference: RRef[Any]) -> bool:
    return reference.confirmed_by_owner()


def pass_on(reference: RRef[Any], names: list[str]) -> Any:
    """Hand the reference through some workers; the last one fetches its value."""
    if not names:
        return reference.to_here()
    return current_agent().caller.call_sync(names[0], pass_on, (reference, names[1:]), None, -1)


def keep(reference: RRef[Any]) -> RRef[Any]:
    """A reference here to a value that holds a reference itself."""
    agent = current_agent()
    return RRef.of(agent.references, *agent.references.create_local([reference]))


def fetch_inner(outer: RRef[list[RRef[Any]]]) -> Any:
    return outer.local_value()[0].to_here()


def append(reference: RRef[list[int]], value: int) -> int:
    values = reference.local_value()
    values.append(value)
    return len(values)


def raise_key_error() -> None:
    raise KeyError("nothing")


_gate = threading.Event()


def wait_at_the_gate() -> torch.Tensor:
    _gate.wait(LONG)
    return torch.ones(2)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    _gate.clear()
    with LocalCluster(["a", "b", "c", "d"]) as running_cluster:
        yield running_cluster
        _gate.set()


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true; the references' control messages need a moment."""
    pause = threading.Event()
    for _ in range(1000):
        gc.collect()
        if condition():
            return True
        pause.wait(0.01)
    return False


def references_left(cluster: LocalCluster) -> int:
    counts = [cluster[name].agent.references.statistics() for name in ("a", "b", "c", "d")]
    return sum(s.num_owner_rrefs + s.num_users + s.num_pending_futures for s in counts)


def test_remote_and_to_here(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", ones, (3,))
    assert torch.equal(reference.to_here(), torch.ones(3))
    assert (reference.is_owner(), reference.owner_name()) == (False, "b")
    assert reference.owner() == cluster["b"].agent.info
    assert eventually(reference.confirmed_by_owner)
    with pytest.raises(RRefMisuse, match=r"can't call localValue\(\) on user WorkerInfo\(id=\d, name=a\)"):
        reference.local_value()


def test_of_this_worker_itself(cluster: LocalCluster) -> None:
    a = cluster["a"]
    made = a.remote("a", make_list, (3,))
    assert made.is_owner()
    assert made.to_here() == [0, 1, 2]
    held = a.rref("value")
    assert (held.local_value(), held.to_here(), held.owner_name()) == ("value", "value", "a")
    assert a.rpc_sync("b", fetch, (held,)) == "value"
    assert a.rpc_sync("a", fetch, (held,)) == "value"
    assert held.confirmed_by_owner()


def test_a_reference_as_a_tensor_of_a_script_call_at_its_owner(cluster: LocalCluster) -> None:
    a = cluster["a"]
    reference = a.remote("b", ones, (4,))
    assert a.rpc_sync("b", total, (reference,)) == 4.0
    assert a.remote("b", total, (reference,), {"factor": 2.0}).to_here() == 8.0
    chained = a.remote("b", torch.add, (reference, reference))
    assert a.rpc_async("b", total, (chained,)).wait() == 8.0


def test_a_script_call_waits_for_a_value_that_is_being_made(cluster: LocalCluster) -> None:
    a = cluster["a"]
    reference = a.remote("b", wait_at_the_gate)
    future = a.rpc_async("b", total, (reference,))
    assert not future.done()
    _gate.set()
    assert future.wait() == 2.0


def test_a_reference_of_another_owner_is_no_tensor(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", ones, (4,))
    with pytest.raises(RuntimeError, match="Expected a value of type 'Tensor' for argument 'x'"):
        cluster["a"].rpc_sync("c", total, (reference,))


def test_passed_between_any_workers(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", make_list, (3,))
    for names in (["c"], ["b"], ["c", "d"], ["d", "b", "c"], ["a"], ["c", "a", "d", "b", "b", "a"]):
        assert cluster["a"].rpc_sync(names[0], pass_on, (reference, names[1:])) == [0, 1, 2]
    again = cluster["a"].rpc_sync("c", hand_back, (reference,))
    assert isinstance(again, RRef)
    assert again.rref_id == reference.rref_id
    assert again.to_here() == [0, 1, 2]
    inner = cluster["a"].rpc_sync("d", keep, (reference,))
    del again, reference
    assert cluster["a"].rpc_sync("d", fetch_inner, (inner,)) == [0, 1, 2]


def test_a_function_starts_when_the_owners_know_of_its_references(cluster: LocalCluster) -> None:
    a = cluster["a"]
    for _ in range(20):
        assert a.rpc_sync("c", is_confirmed, (a.remote("b", make_list, (1,)),))
        assert a.remote("c", is_confirmed, (a.remote("b", make_list, (1,)),)).to_here()


def test_a_function_starts_when_the_owner_of_its_reference_is_lost(cluster: LocalCluster) -> None:
    a = cluster["a"]
    reference = a.remote("b", make_list, (1,))
    assert reference.to_here() == [0]
    cluster.kill("b")
    answer = a.rpc_async("c", is_confirmed, (reference,))  # b is not there to say that it knows c's reference
    assert answer.wait() is False


def test_a_change_at_the_owner_is_seen_by_all(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", make_list, (2,))
    assert cluster["a"].rpc_sync("b", append, (reference, 7)) == 3
    assert cluster["a"].rpc_sync("c", fetch, (reference,)) == [0, 1, 7]


def test_nothing_is_left_when_all_are_dropped(cluster: LocalCluster) -> None:
    references = [cluster["a"].remote(to, make_list, (2,)) for to in ("a", "b", "c", "d") for _ in range(20)]
    for index, reference in enumerate(references):
        cluster["a"].rpc_sync("bcd"[index % 3], pass_on, (reference, ["d", "b"]))
    kept = [cluster["a"].rpc_sync("d", keep, (reference,)) for reference in references]
    assert references_left(cluster) >= 80
    del references, reference, kept
    assert eventually(lambda: references_left(cluster) == 0), [
        cluster[n].agent.references._table for n in ("a", "b", "c", "d")
    ]
    assert all(not cluster[name].agent.references._values for name in ("a", "b", "c", "d"))


def test_the_error_of_its_function_is_raised_at_each_fetch(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", raise_key_error)
    for _ in range(2):
        with pytest.raises(KeyError, match="nothing"):
            reference.to_here()
    with pytest.raises(KeyError):
        cluster["a"].rpc_sync("c", fetch, (reference,))
    own = cluster["a"].remote("a", raise_key_error)
    with pytest.raises(KeyError):
        own.to_here()


def test_a_fetch_has_a_deadline(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", wait_at_the_gate)
    with pytest.raises(CallTimeout, match="fetching the value"):
        reference.to_here(0.05)
    own = cluster["a"].remote("a", wait_at_the_gate)
    with pytest.raises(CallTimeout, match="waiting for the value"):
        own.to_here(0.05)
    _gate.set()
    assert torch.equal(reference.to_here(), torch.ones(2))
    assert torch.equal(own.to_here(), torch.ones(2))


def test_outside_of_a_call_it_cannot_be_pickled(cluster: LocalCluster) -> None:
    with pytest.raises(RRefMisuse, match="Can not pickle rref in python pickler"):
        pickle.dumps(cluster["a"].rref(1))


def test_a_reference_to_a_lost_owner_says_so(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", make_list, (2,))
    assert reference.to_here() == [0, 1]
    cluster.kill("b")
    assert eventually(lambda: not cluster["a"].agent.directory.find_name("b"))
    with pytest.raises(RRefLost, match="lost with its owner 'b'"):
        reference.to_here()
    cluster.start("b")
    with pytest.raises(RRefLost):
        reference.to_here()


def test_a_creation_that_is_refused_is_told_at_the_fetch() -> None:
    script_only = AgentOptions(codecs=("script",), init_timeout=LONG)
    with LocalCluster(["a", "b"], options_of={"b": script_only}) as cluster:
        reference = cluster["a"].remote("b", make_list, (2,))
        with pytest.raises(CodecRefused, match="python codec"):
            reference.to_here()


def test_a_worker_that_was_not_announced_has_its_id_for_a_name(cluster: LocalCluster) -> None:
    assert cluster["a"].agent.references.info_of(1234).name == "id:1234"


def test_repr_shows_the_ids(cluster: LocalCluster) -> None:
    user = cluster["a"].remote("b", make_list, (2,))
    me = cluster["a"].agent.info.id
    assert str(user) == (
        f"UserRRef(RRefId = GloballyUniqueId(created_on={me}, local_id=0), "
        f"ForkId = GloballyUniqueId(created_on={me}, local_id=1))"
    )
    assert str(cluster["a"].rref(1)) == f"OwnerRRef(GloballyUniqueId(created_on={me}, local_id=2))"


def test_a_lost_reference_cannot_be_passed_on(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", make_list, (2,))
    assert reference.to_here() == [0, 1]
    cluster.kill("b")
    assert eventually(lambda: not cluster["a"].agent.directory.find_name("b"))
    with pytest.raises(RRefLost, match="lost with its owner 'b'"):
        cluster["a"].rpc_sync("c", fetch, (reference,))


def test_a_value_that_is_not_made_in_time_is_of_no_use_to_its_creator(cluster: LocalCluster) -> None:
    a = cluster["a"]
    reference = a.remote("b", wait_at_the_gate, timeout=0.05)
    with pytest.raises(CallTimeout):
        reference._get_future().wait()
    assert eventually(lambda: bool(cluster["a"].agent.references._creation_errors))
    _gate.set()
    with pytest.raises(CallTimeout, match=r"RRef creation via rpc.remote\(\) timed out"):
        reference.to_here()
    with pytest.raises(CallTimeout, match="RRef creation"):
        a.rpc_sync("c", fetch, (reference,))
    with pytest.raises(CallTimeout, match="RRef creation"):
        reference.rpc_sync().sum()
    del reference
    assert eventually(lambda: references_left(cluster) == 0)


def test_the_creator_is_confirmed_when_the_value_is_made(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", wait_at_the_gate, timeout=LONG)
    assert not reference.confirmed_by_owner()
    _gate.set()
    assert eventually(reference.confirmed_by_owner)


def waiters(cluster: LocalCluster, name: str) -> int:
    references = cluster[name].agent.references
    return sum(len(owned.waiters) for owned in references._values.values()) + len(references._fetches)


def test_fetches_that_are_given_up_leave_nothing(cluster: LocalCluster) -> None:
    reference = cluster["a"].remote("b", wait_at_the_gate)
    for _ in range(5):
        with pytest.raises(CallTimeout):
            reference.to_here(0.05)
    assert eventually(lambda: waiters(cluster, "b") == 0)
    assert cluster["b"].agent.references.statistics().num_handles == 0
    _gate.set()
    assert torch.equal(reference.to_here(), torch.ones(2))


def test_a_fetch_of_a_value_that_nobody_knows_leaves_nothing(cluster: LocalCluster) -> None:
    a, b = cluster["a"].agent, cluster["b"].agent
    unknown = (7, 123456, 7, 123457, 0, 0, 0, 0)  # a value that somebody else was to create here, and never does
    with pytest.raises(CallTimeout):
        a.caller.request_sync(a.peers.find("b"), Kind.RREF_FETCH, "fetching", unknown, 0.05)
    assert eventually(lambda: references_left(cluster) == 0)
    assert b.references._values == {}


def test_a_lost_value_says_when_and_why() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        before = wall()
        reference = cluster["a"].remote("b", torch.add, (torch.ones(1), 1))
        assert reference.to_here().item() == 2
        gone = threading.Event()
        cluster["a"].agent.watch.register(lambda event: gone.set(), present=False)
        cluster.kill("b")
        assert gone.wait(20)
        cluster.start("b")  # another life of the name does not have the value
        with pytest.raises(RRefLost, match=r"lost with its owner 'b': .* \(at \d\d:\d\d:\d\d\)") as lost:
            reference.to_here()
        assert lost.value.when is not None
        assert before <= lost.value.when <= wall()


def use_in_vain(reference: RRef[Any], use: str) -> None:
    held = reference
    with pytest.raises(KeyError):
        held.local_value() if use == "local" else held.to_here()


def test_a_reference_whose_error_was_raised_can_still_be_let_go_of(cluster: LocalCluster) -> None:
    here, there = cluster["a"].remote("a", raise_key_error), cluster["a"].remote("b", raise_key_error)
    for _ in range(3):
        use_in_vain(here, "local")
        use_in_vain(here, "fetch")
        use_in_vain(there, "fetch")
    del here, there
    assert eventually(lambda: references_left(cluster) == 0)


def test_strangers_are_waited_for_while_there_is_no_broker() -> None:
    with LocalCluster(["a"]) as cluster:
        agent = cluster["a"].agent
        now = agent.broker_since
        assert now() == float("-inf")
        agent._take_news(BrokerLost("it is gone"))
        began = now()
        assert began > 0
        with agent.references._lock:
            agent.references._strangers.meet(Life(7, 70), began - 1e6)
        agent.references.on_timer(began)
        assert (deadline := agent.references._strangers.next_deadline()) is not None
        assert deadline >= began + PATIENCE
        agent._take_news(BrokerBack(True))
        back = now()
        assert back >= began
        agent.references.on_timer(back)
        assert now() == back
        agent.references.on_timer(back + PATIENCE)
        assert agent.references._strangers.next_deadline() is None
