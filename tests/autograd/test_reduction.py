"""Modules of DistributedDataParallel that are used in contexts."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from zrpc import autograd
from zrpc.autograd import ddp
from zrpc.runtime.context import running
from zrpc.testing import LocalCluster

ALONE = 1


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=ALONE)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_the_lock_is_given_away_before_a_reducer_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's threads wait for when the reducer joins them: see `ddp`."""
    was_alive: list[bool] = []
    pauses: list[float] = []

    class Pause(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread() is threading.main_thread() and timeout == ddp.PAUSE:
                pauses.append(timeout)
                was_alive.append(torch.distributed.is_initialized())
            return super().wait(timeout)

    with LocalCluster(("a",)) as cluster:
        monkeypatch.setattr(running, "agent", cluster["a"].agent)
        module = DistributedDataParallel(torch.nn.Linear(2, 1))
        with autograd.context() as context_id:
            autograd.backward(context_id, [module(torch.ones(1, 2)).sum()])
            assert len(autograd.get_gradients(context_id)) == 2
        monkeypatch.setattr(ddp.threading, "Event", Pause)
        torch.distributed.destroy_process_group()
        assert not pauses
        del module
        gc.collect()
    assert pauses == [ddp.PAUSE]
    assert was_alive == [False]
