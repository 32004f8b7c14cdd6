"""Who comes and goes, told to callbacks in order, and waited for."""

from __future__ import annotations

import logging
import queue
import threading

import pytest
import torch

from zrpc.clock import monotonic
from zrpc.errors import GroupTimeout, WorkerLost
from zrpc.ids import WorkerInfo
from zrpc.protocol.effects import MemberDraining, MemberGone, MemberUp
from zrpc.runtime.watch import MembershipEvent, MembershipWatch
from zrpc.testing import LocalCluster
from zrpc.wire.messages import Member

LONG = 20.0


def member(number: int, role: str = "", state: str = "up") -> Member:
    return Member(f"w{number}", number, 100 + number, 0, "memory://w", role, state)


class Scene:
    """A watch over a list of members, and a callback that keeps what it hears."""

    def __init__(self, *members: Member) -> None:
        self.members = list(members)
        self.watch = MembershipWatch("me", lambda: list(self.members), monotonic)
        self.heard: queue.SimpleQueue[MembershipEvent] = queue.SimpleQueue()

    def next(self) -> tuple[str, str]:
        event = self.heard.get(timeout=LONG)
        return event.kind, event.worker.name


def test_events_come_in_order_with_their_reasons() -> None:
    scene = Scene()
    scene.watch.register(scene.heard.put, present=False)
    a = member(1, "shard")
    scene.watch.note(MemberUp(a))
    scene.watch.note(MemberDraining(a))
    scene.watch.note(MemberGone(a, "it had enough", "left"))
    scene.watch.note(MemberGone(member(2), "its connection closed"))
    info = WorkerInfo("w1", 1)
    assert [scene.heard.get(timeout=LONG) for _ in range(4)] == [
        MembershipEvent("joined", info, "shard", 101),
        MembershipEvent("draining", info, "shard", 101),
        MembershipEvent("left", info, "shard", 101, "it had enough"),
        MembershipEvent("died", WorkerInfo("w2", 2), "", 102, "its connection closed"),
    ]
    scene.watch.close()


def test_who_is_there_is_told_first_when_asked_for() -> None:
    scene = Scene(member(1), member(2))
    scene.watch.register(scene.heard.put, present=True)
    scene.watch.note(MemberUp(member(3)))
    assert [scene.next() for _ in range(3)] == [("joined", "w1"), ("joined", "w2"), ("joined", "w3")]
    scene.watch.close()


def test_a_callback_that_fails_is_logged_and_told_on(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()

    def fail(event: MembershipEvent) -> None:
        scene.heard.put(event)
        raise ValueError("not my day")

    scene.watch.register(fail, present=False)
    with caplog.at_level(logging.ERROR):
        scene.watch.note(MemberUp(member(1)))
        scene.watch.note(MemberUp(member(2)))
        assert [scene.next(), scene.next()] == [("joined", "w1"), ("joined", "w2")]
        scene.watch.close()
    assert "not my day" in caplog.text


def test_a_cancelled_callback_hears_nothing_more() -> None:
    scene = Scene()
    other: queue.SimpleQueue[MembershipEvent] = queue.SimpleQueue()
    scene.watch.register(scene.heard.put, present=False)
    with scene.watch.register(other.put, present=False) as registration:
        scene.watch.note(MemberUp(member(1)))
        assert other.get(timeout=LONG).worker.name == "w1"
    registration.cancel()
    scene.watch.note(MemberUp(member(2)))
    assert [scene.next(), scene.next()] == [("joined", "w1"), ("joined", "w2")]
    assert other.empty()
    scene.watch.close()


def test_without_callbacks_there_is_no_thread_and_after_the_end_none_is_left() -> None:
    scene = Scene()
    scene.watch.note(MemberUp(member(1)))
    assert not [t for t in threading.enumerate() if t.name == "zrpc-me-membership"]
    scene.watch.register(scene.heard.put, present=False)
    scene.watch.close()
    assert not [t for t in threading.enumerate() if t.name == "zrpc-me-membership"]


def test_waiting_counts_roles_and_leaves_out_those_who_drain() -> None:
    scene = Scene(member(3, "shard"), member(1, "shard"), member(2), member(4, "shard", "draining"))
    assert [m.name for m in scene.watch.wait([], "shard", 2, None)] == ["w1", "w3"]
    assert [m.name for m in scene.watch.wait(["w2"], None, 1, None)] == ["w2"]
    with pytest.raises(GroupTimeout, match="3 workers of role 'shard'") as caught:
        scene.watch.wait([], "shard", 3, monotonic())
    assert (caught.value.present, caught.value.short) == (("w1", "w3"), 1)
    with pytest.raises(GroupTimeout, match="Missing: w4, w9"):
        scene.watch.wait(["w1", "w4", "w9"], None, 3, monotonic())


def test_who_waits_is_woken_by_a_join_and_by_the_end() -> None:
    scene = Scene()
    found: queue.SimpleQueue[object] = queue.SimpleQueue()

    def wait() -> None:
        try:
            found.put(scene.watch.wait(["w1"], None, 1, monotonic() + LONG))
        except WorkerLost as error:
            found.put(error)

    thread = threading.Thread(target=wait)
    thread.start()
    scene.members.append(member(1))
    scene.watch.note(MemberUp(member(1)))
    assert found.get(timeout=LONG) == [member(1)]
    thread.join(LONG)
    scene.members.clear()
    thread = threading.Thread(target=wait)
    thread.start()
    scene.watch.close()
    assert isinstance(found.get(timeout=LONG), WorkerLost)
    thread.join(LONG)


def test_in_a_cluster_callbacks_may_call_workers() -> None:
    with LocalCluster(["a"]) as cluster:
        heard: queue.SimpleQueue[tuple[str, str, object]] = queue.SimpleQueue()

        def greet(event: MembershipEvent) -> None:
            answer = None
            if event.kind == "joined":
                answer = cluster["a"].rpc_sync(event.worker.name, torch.add, (torch.ones(1), 1)).item()
            heard.put((event.kind, event.worker.name, answer))

        cluster["a"].agent.watch.register(greet, present=False)
        cluster.start("b")
        cluster.start("c")
        assert heard.get(timeout=LONG) == ("joined", "b", 2.0)
        assert heard.get(timeout=LONG) == ("joined", "c", 2.0)
        cluster.stop("b")
        event = heard.get(timeout=LONG)
        if event[0] == "draining":  # not told when it has left before the next telling
            event = heard.get(timeout=LONG)
        assert event == ("left", "b", None)
        cluster.kill("c")
        assert heard.get(timeout=LONG) == ("died", "c", None)
