"""Workers that die, stop or are cut off: whoever waits for them is told, with the broker and without."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import LONG, Cable, scene, wait_for_file

import zrpc
from zrpc.clock import monotonic
from zrpc.errors import WorkerLost
from zrpc.runtime.context import current_agent

pytestmark = pytest.mark.integration


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    yield cable
    cable.close()


class Waiting:
    """A synchronous and an asynchronous call to a worker that will not answer."""

    def __init__(self, worker: str, folder: Path) -> None:
        self.pid: int = zrpc.rpc_sync(worker, "helper:pid", timeout=LONG)
        self._errors: list[BaseException] = []
        marks = [str(folder / f"{worker}-{kind}") for kind in ("sync", "async")]
        self._thread = threading.Thread(target=self._call, args=(worker, marks[0]))
        self._thread.start()
        self._future = zrpc.rpc_async(worker, "helper:sleep_until_told", (marks[1],), timeout=2 * LONG)
        for mark in marks:
            wait_for_file(Path(f"{mark}.begun"))

    def _call(self, worker: str, mark: str) -> None:
        try:
            zrpc.rpc_sync(worker, "helper:sleep_until_told", (mark,), timeout=2 * LONG)
        except BaseException as error:
            self._errors.append(error)

    def errors(self) -> list[BaseException]:
        """What both calls ended with, which they do long before their timeout."""
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        try:
            self._future.wait()
        except BaseException as error:
            self._errors.append(error)
        return self._errors


def wait_until_watched(name: str) -> None:
    """Until this process has a connection to that worker which tells when it is stopped."""
    worker = next(info for info in zrpc.get_workers() if info.name == name)
    deadline = monotonic() + LONG
    while worker.id not in [key[0] for key in current_agent().vigil.standing()]:
        assert monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize("has_broker", [True, False], ids=["with the broker", "while the broker is away"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_calls_to_a_worker_that_answers_no_more_fail(tmp_path: Path, number: int, has_broker: bool) -> None:
    with scene(tmp_path) as cluster:
        broker = cluster.broker()
        cluster.workers("a")
        cluster.join()
        waiting = Waiting("a", tmp_path)
        if not has_broker:
            broker.popen.kill()
            broker.popen.wait(LONG)
            wait_until_watched("a")
        os.kill(waiting.pid, number)
        errors = waiting.errors()
        assert [type(error) for error in errors] == [WorkerLost, WorkerLost], errors


def test_calls_to_a_worker_whose_cable_is_cut_fail(tmp_path: Path, cable: Cable) -> None:
    with scene(tmp_path) as cluster:
        cluster.broker()
        cluster.start_behind("a", cable)
        cluster.join()
        waiting = Waiting("a", tmp_path)
        cable.cut()
        errors = waiting.errors()
        assert [type(error) for error in errors] == [WorkerLost, WorkerLost], errors


def test_a_cable_that_is_cut_between_two_workers_only_fails_their_calls(tmp_path: Path, cable: Cable) -> None:
    """The broker still hears both."""
    with scene(tmp_path) as cluster:
        cluster.broker()
        cluster.start_behind("a", cable, broker_too=False)
        cluster.join()
        waiting = Waiting("a", tmp_path)
        wait_until_watched("a")
        cable.cut()
        errors = waiting.errors()
        assert [type(error) for error in errors] == [WorkerLost, WorkerLost], errors
        assert "its connection broke and did not come back" in str(errors[0])
        assert [info.name for info in zrpc.get_workers()] == ["a", "test"]
