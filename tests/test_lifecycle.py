"""The public face of coming and going, in one process: a broker, and an agent of `init_rpc`."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import zrpc
from zrpc.broker.server import BrokerServer
from zrpc.clock import monotonic
from zrpc.errors import GroupTimeout
from zrpc.lifecycle import run_main
from zrpc.runtime.context import current_agent
from zrpc.transport.curve import new_keyring, write_key_file
from zrpc.transport.router import ZmqTransport

LONG = 20.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerServer]:
    keyring = new_keyring("lifecycle")
    key_file = write_key_file(keyring, tmp_path / "key")
    transport = ZmqTransport(keyring, "broker")
    server = BrokerServer(transport, "tcp://127.0.0.1:0", cluster="lifecycle")
    server.start()
    try:
        zrpc.init_rpc("me", broker=server.address, key_file=str(key_file), role="tester")
        yield server
    finally:
        zrpc.shutdown(graceful=False)
        server.stop()
        transport.close()


def send_when_serving(*numbers: int) -> threading.Thread:
    """A thread that sends signals to the main one, each when the one before has been taken."""
    main = threading.main_thread().ident
    assert main is not None
    agent = current_agent()
    before = signal.getsignal(numbers[0])

    def send() -> None:
        deadline = monotonic() + LONG
        while signal.getsignal(numbers[0]) is before and monotonic() < deadline:
            agent.stop_requested.wait(0.001)
        for number in numbers:
            signal.pthread_kill(main, number)
            assert agent.stop_requested.wait(LONG)

    return threading.Thread(target=send)


def test_membership_is_told_and_waited_for(broker: BrokerServer) -> None:
    heard: queue.SimpleQueue[zrpc.MembershipEvent] = queue.SimpleQueue()
    handle = zrpc.on_membership(heard.put, present=True)
    event = heard.get(timeout=LONG)
    assert (event.kind, event.worker, event.role) == ("joined", zrpc.get_worker_info(), "tester")
    handle.cancel()
    assert zrpc.wait_for("me") == zrpc.wait_for(role="tester") == zrpc.wait_for() == [zrpc.get_worker_info()]
    with pytest.raises(GroupTimeout, match=r"Missing: nobody-else\. Present: me"):
        zrpc.wait_for(["me", "nobody-else"], timeout=0.01)
    with pytest.raises(ValueError, match="not both"):
        zrpc.wait_for("me", role="tester")


def test_a_signal_drains_and_serve_returns_its_name(broker: BrokerServer) -> None:
    agent = current_agent()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    sender = send_when_serving(signal.SIGTERM)
    assert zrpc.serve(timeout=0.0) == ""
    assert (zrpc.stop_requested(), agent.leaving.why) == ("", None)
    sender.start()
    assert zrpc.serve(timeout=LONG) == "SIGTERM came"
    assert (zrpc.stop_requested(), agent.leaving.why) == ("SIGTERM came", "SIGTERM came")
    assert not agent.leaving.is_hurried
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    sender.join()


def test_a_second_signal_hurries(broker: BrokerServer) -> None:
    agent = current_agent()
    stuck = threading.Event()
    agent.executor.submit(lambda: stuck.wait(LONG))
    sender = send_when_serving(signal.SIGINT, signal.SIGINT)
    sender.start()
    assert zrpc.serve(timeout=LONG) == "SIGINT came"
    assert agent.leaving.is_hurried
    stuck.set()
    sender.join()


def test_a_request_of_the_broker_drains_too(broker: BrokerServer) -> None:
    broker.request_stop(["me"], "enough")
    assert zrpc.serve(timeout=LONG) == "enough"
    assert current_agent().leaving.why == "enough"


def test_a_checkpoint_is_saved_once_before_draining(broker: BrokerServer) -> None:
    states: list[str | None] = []
    assert not zrpc.on_checkpoint(lambda: states.append(current_agent().leaving.why), lambda: states.append("restored"))
    broker.request_stop(["me"], "enough")
    assert zrpc.serve(timeout=LONG) == "enough"
    current_agent().leaving.save()
    assert states == [None]


def test_a_checkpoint_that_cannot_be_saved_is_logged(broker: BrokerServer, caplog: pytest.LogCaptureFixture) -> None:
    saved = []

    def fail() -> None:
        raise OSError("the disk is full")

    zrpc.on_checkpoint(fail)
    zrpc.on_checkpoint(lambda: saved.append(1))
    current_agent().leaving.save()
    assert "the disk is full" in caplog.text
    assert saved == [1]


def test_a_process_that_was_started_again_restores(broker: BrokerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zrpc.restart_count() == 0
    monkeypatch.setenv("ZRPC_RESTART", "2")
    restored: list[int] = []
    assert zrpc.on_checkpoint(lambda: None, lambda: restored.append(zrpc.restart_count()))
    assert restored == [2]


def test_a_signal_ends_a_main_function_and_its_checkpoint_is_saved(broker: BrokerServer) -> None:
    saved: list[str] = []
    zrpc.on_checkpoint(lambda: saved.append(zrpc.stop_requested()))
    sender = send_when_serving(signal.SIGTERM)

    def work(seconds: float) -> None:
        sender.start()
        threading.Event().wait(seconds)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_main(work, {"seconds": LONG})
    sender.join()
    signal.signal(signal.SIGTERM, handler)
    assert (ended.value.code, saved) == (143, ["SIGTERM came"])
    assert run_main(lambda x: x + 1, {"x": 1}) == 2
