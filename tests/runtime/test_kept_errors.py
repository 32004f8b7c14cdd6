"""What chaos with real processes found: references that were kept by the errors about them, values that were never made."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from zrpc.clock import monotonic
from zrpc.errors import CallTimeout, RRefLost, Unavailable
from zrpc.runtime.raising import fresh, kept
from zrpc.testing import FaultPlan, LocalCluster
from zrpc.transport.base import RouteGone
from zrpc.wire.envelope import Kind

LONG = 20.0  # reached only by a failure


def test_a_reference_whose_creation_failed_goes_with_its_last_handle() -> None:
    plan = FaultPlan()
    with LocalCluster(["a", "b"], faults=plan) as cluster:
        a = cluster["a"]

        def use() -> None:
            plan.drop(kinds="REMOTE_CALL", count=1)
            made = a.remote("b", torch.add, args=(torch.ones(1), 1), timeout=0.2)
            with pytest.raises((CallTimeout, RRefLost)):
                made.to_here(0.5)
            with pytest.raises(CallTimeout):
                made.to_here(0.5)

        use()
        gc.collect()
        deadline = monotonic() + LONG
        while a.agent.references.statistics().num_users:
            assert monotonic() < deadline, a.agent.references._table
            threading.Event().wait(0.01)


def test_a_value_is_made_though_its_creator_cannot_be_told() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        callee = cluster["b"].agent.callee
        answer, refused = callee._answer, []

        def fail_once(task: object, kind: Kind) -> None:
            if kind == Kind.REPLY and not refused:
                refused.append(task)
                raise RouteGone("the peer's connection is closed")
            answer(task, kind)  # type: ignore[arg-type]

        callee._answer = fail_once  # type: ignore[method-assign]
        made = cluster["a"].remote("b", torch.add, args=(torch.ones(1), 1), timeout=LONG)
        assert made.to_here(LONG) == 2
        assert refused


def test_a_fresh_error_is_the_same_without_frames() -> None:
    with pytest.raises(CallTimeout) as caught:
        raise CallTimeout("w", "f", 1.5, "state")
    error = kept(caught.value)
    copy = fresh(error)
    assert copy is not error
    assert (type(copy), str(copy), vars(copy)) == (CallTimeout, str(error), vars(error))
    assert copy.__traceback__ is None
    for plain in (ValueError("x"), KeyError("k"), OSError(2, "no"), Unavailable("y")):
        assert str(fresh(plain)) == str(plain)
    odd = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")
    assert str(fresh(odd)) == str(odd)
