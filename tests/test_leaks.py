"""References that are left at the end: who is told, and what is said of where they were made."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zrpc.errors import NotInitialized, RRefMisuse
from zrpc.leaks import _delete_all_user_and_unforked_owner_rrefs, _destroy_rref_context
from zrpc.options import AgentOptions
from zrpc.rref import RRef
from zrpc.testing import LocalCluster

_kept: list[Any] = []


def make(n: int) -> list[int]:
    return list(range(n))


def keep(reference: RRef[Any]) -> None:
    _kept.append(reference)


def let_go() -> None:
    _delete_all_user_and_unforked_owner_rrefs()


def look(ignore_leak: bool) -> None:
    _destroy_rref_context(ignore_leak)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        yield running
        _kept.clear()


def on(cluster: LocalCluster, name: str, func: Any, *args: Any) -> Any:
    """Run a function as worker `name`, on its own pool."""
    return cluster[name].rpc_sync(name, func, args)


def count_of_forks(cluster: LocalCluster, name: str) -> int:
    pause = threading.Event()
    for _ in range(500):
        gc.collect()
        forks = cluster[name].agent.references.statistics().num_forks
        if not forks:
            return 0
        pause.wait(0.01)
    return forks


def test_what_the_program_still_holds_is_let_go_of_with_a_warning(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    references = [cluster["a"].remote("b", make, (n,)) for n in range(3)]
    for reference in references:
        reference.to_here()
    with caplog.at_level(logging.WARNING, "zrpc"):
        on(cluster, "a", let_go)
    (text,) = (record.getMessage() for record in caplog.records)
    assert text.startswith("worker a ends while its program still holds 3 references to values of other workers")
    assert f"  3 to a value of 'b': remote(make) at {__file__}:" in text
    assert (
        "in <listcomp>" in text
        or f"in {test_what_the_program_still_holds_is_let_go_of_with_a_warning.__name__}" in text
    )
    assert count_of_forks(cluster, "b") == 0
    with pytest.raises(RRefMisuse, match="after deletion"):
        references[0].to_here()


def test_what_came_from_others_is_told_with_whom_and_in_which_call(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster["a"].rpc_sync("b", keep, (cluster["a"].remote("c", torch.add, (torch.ones(1), 1)),))
    with caplog.at_level(logging.WARNING, "zrpc"):
        on(cluster, "b", let_go)
    (text,) = (record.getMessage() for record in caplog.records)
    assert "1 reference to a value of another worker" in text
    assert f"  1 to a value of 'c': received from 'a' in a call of {__name__}:keep" in text


def test_nothing_is_said_when_nothing_is_left(cluster: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    reference = cluster["a"].remote("b", make, (1,))
    circle: list[Any] = [reference]
    circle.append(circle)  # garbage that only a collection finds
    reference.to_here()
    del reference, circle
    own = cluster["a"].rref(5)  # nobody else refers to it
    with caplog.at_level(logging.WARNING, "zrpc"):
        on(cluster, "a", let_go)
        on(cluster, "a", look, False)
    assert caplog.records == []
    assert own.is_owner()


def test_values_here_that_others_hold_are_a_leak(cluster: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    a = cluster["a"]
    own = a.rref("mine")
    a.rpc_sync("b", keep, (own,))
    theirs = cluster["c"].remote("a", make, (2,))
    theirs.to_here()
    with pytest.raises(RRefMisuse, match=r"Leaking RRef GloballyUniqueId.* with fork Id GloballyUniqueId") as caught:
        on(cluster, "a", look, False)
    assert "held by 'b'; the value: RRef(value)" in str(caught.value)
    with caplog.at_level(logging.WARNING, "zrpc"):
        on(cluster, "a", look, True)
    (text,) = (record.getMessage() for record in caplog.records)
    assert text.startswith("worker a ends while others hold 2 references to values of it")
    assert f"held by 'b'; the value: RRef(value) at {__file__}:" in text
    assert f"held by 'c'; the value: {__name__}:make, called by 'c'" in text


def test_what_a_dead_worker_held_is_no_leak(cluster: LocalCluster) -> None:
    theirs = cluster["c"].remote("a", make, (2,))
    theirs.to_here()
    cluster.kill("c")
    pause = threading.Event()
    for _ in range(1000):
        if not cluster["a"].agent.references.held_elsewhere():
            break
        pause.wait(0.01)
    on(cluster, "a", look, False)


def test_the_calls_that_led_there_are_kept_on_request(caplog: pytest.LogCaptureFixture) -> None:
    options = AgentOptions(init_timeout=20.0, reference_stacks=True)
    with LocalCluster(["a", "b"], options=options) as cluster:

        def inner_part_of_the_program() -> RRef[Any]:
            return cluster["a"].remote("b", make, (1,))

        held = inner_part_of_the_program()
        held.to_here()
        with caplog.at_level(logging.WARNING, "zrpc"):
            on(cluster, "a", let_go)
    (text,) = (record.getMessage() for record in caplog.records)
    assert "in inner_part_of_the_program\n" in text
    assert "held = inner_part_of_the_program()" in text


def test_without_an_agent() -> None:
    with pytest.raises(NotInitialized):
        _destroy_rref_context(True)
