"""SIGTERM to real workers: once it is a drain, twice it is the end."""

from __future__ import annotations

import queue
import signal
from pathlib import Path

import pytest
from processes import LONG, scene, wait_for_file

import zrpc
from zrpc.errors import Unavailable, WorkerDraining, WorkerLost

pytestmark = pytest.mark.integration


def test_sigterm_drains_a_worker(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        cluster.broker()
        (worker,) = cluster.workers("a")
        cluster.join()
        heard: queue.SimpleQueue[zrpc.MembershipEvent] = queue.SimpleQueue()
        zrpc.on_membership(heard.put)
        mark = tmp_path / "mark"
        call = zrpc.rpc_async("a", "helper:sleep_until_told", (str(mark),), timeout=LONG)
        wait_for_file(tmp_path / "mark.begun")
        worker.send(signal.SIGTERM)
        assert heard.get(timeout=LONG).kind == "draining"
        with pytest.raises(WorkerDraining, match="SIGTERM came"):
            zrpc.rpc_sync("a", "helper:pid", timeout=LONG)
        mark.touch()
        assert call.wait() == "done"
        assert heard.get(timeout=LONG).kind == "left"
        assert worker.end()[0] == 0
        with pytest.raises(Unavailable):
            zrpc.rpc_sync("a", "helper:pid", timeout=LONG)
        cluster.workers("a")  # the name is free at once
        assert zrpc.wait_for("a", timeout=LONG)[0].name == "a"


def test_sigterm_twice_ends_a_worker_now(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        cluster.broker()
        (worker,) = cluster.workers("a")
        cluster.join()
        heard: queue.SimpleQueue[zrpc.MembershipEvent] = queue.SimpleQueue()
        zrpc.on_membership(heard.put)
        call = zrpc.rpc_async("a", "helper:sleep_until_told", (str(tmp_path / "mark"),), timeout=LONG)
        wait_for_file(tmp_path / "mark.begun")
        worker.send(signal.SIGTERM)
        assert heard.get(timeout=LONG).kind == "draining"
        worker.send(signal.SIGTERM)
        with pytest.raises(WorkerLost):
            call.wait()
        assert worker.end()[0] == 0
