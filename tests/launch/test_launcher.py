from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zrpc.config.loader import parse_config
from zrpc.config.schema import Loaded
from zrpc.errors import ConfigError
from zrpc.launch.launcher import Launcher, Presentation
from zrpc.launch.processes import Program
from zrpc.launch.request import Broker, BrokerRequest
from zrpc.transport.curve import load_key_file

TEXT = "roles: {w: {}}\njob: {entry: 'a:b'}\n"


class FakeBroker:
    def __init__(self, request: BrokerRequest) -> None:
        self.request = request
        self.address = "tcp://127.0.0.1:5"
        self.calls: list[str] = []

    def exited(self, name: str, pid: int, why: str) -> None:
        self.calls.append(f"{name} {why}")

    def stop(self, timeout: float = 5.0) -> None:
        self.calls.append("stop")


class FakeChild:
    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self.pid = 7
        self.output, self._writer = os.pipe()
        os.set_blocking(self.output, False)
        self._on_exit = on_exit

    def terminate(self) -> None:
        self._on_exit(0)

    def kill(self) -> None:
        self._on_exit(-9)

    def release(self) -> None:
        self._on_exit(0)

    def close(self) -> None:
        os.close(self.output)
        os.close(self._writer)


class Scene:
    """A launcher among fakes; `at_start(name)` is called when a process is started."""

    def __init__(self, tmp_path: Path, text: str = TEXT) -> None:
        self.tmp_path = tmp_path
        self.out = io.StringIO()
        self.brokers: list[FakeBroker] = []
        self.record: dict[str, object] = {}
        self.key_file = ""
        self.at_start: Callable[[Program], None] = lambda program: None
        loaded = Loaded(parse_config(text, "c.yaml"), tmp_path / "c.yaml")
        self.launcher = Launcher(
            loaded,
            self.start_broker,
            show=Presentation(self.out),
            environ={"XDG_RUNTIME_DIR": str(tmp_path)},
            spawner=self,
            clock=lambda: 0.0,
        )

    def start_broker(self, request: BrokerRequest) -> Broker:
        self.brokers.append(FakeBroker(request))
        return self.brokers[0]

    def spawn(self, program: Program, on_exit: Callable[[int], None]) -> FakeChild:
        if not program.gated:
            (found,) = self.tmp_path.glob("zrpc/*/cluster.json")
            self.record = json.loads(found.read_text())
            self.brokers[0].request.joined(program.environment["ZRPC_NAME"])
        self.at_start(program)
        return FakeChild(on_exit)


def test_a_whole_life(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    fingerprints = []
    scene.at_start = lambda program: fingerprints.append(
        load_key_file(program.environment["ZRPC_KEY_FILE"]).fingerprint()
    )
    assert scene.launcher.run() == 0
    request = scene.brokers[0].request
    assert request.keyring is not None
    assert fingerprints == [request.keyring.fingerprint()] * 2
    assert (request.cluster, request.bind, request.expected) == ("zrpc", "tcp://127.0.0.1:0", ("w",))
    assert scene.brokers[0].calls == ["job ended with exit code 0", "w ended with exit code 0", "stop"]
    assert (scene.record["broker"], scene.record["pid"]) == ("tcp://127.0.0.1:5", os.getpid())
    assert list(tmp_path.iterdir()) == []
    assert "security" not in scene.out.getvalue()


def test_without_security(tmp_path: Path) -> None:
    scene = Scene(tmp_path, TEXT + "security: off\n")
    environments = []
    scene.at_start = lambda program: environments.append(program.environment)
    assert scene.launcher.run() == 0
    assert scene.brokers[0].request.keyring is None
    assert scene.record["key_file"] is None
    assert not any("ZRPC_KEY_FILE" in environment for environment in environments)
    assert "security is off: anybody" in scene.out.getvalue()


def test_a_request_to_stop(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "roles: {w: {}}")
    scene.at_start = lambda program: scene.brokers[0].request.stop_asked("zrpc stop")
    assert scene.launcher.run() == 0
    assert "stopping: zrpc stop" in scene.out.getvalue()


def test_a_broker_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    def refuse(request: BrokerRequest) -> Broker:
        raise ConfigError("bind address", ["in use"])

    scene.start_broker = refuse  # type: ignore[method-assign]
    scene.launcher = Launcher(
        Loaded(parse_config(TEXT, "c.yaml"), tmp_path / "c.yaml"),
        refuse,
        show=Presentation(scene.out),
        environ={"XDG_RUNTIME_DIR": str(tmp_path)},
        spawner=scene,
    )
    with pytest.raises(ConfigError, match="in use"):
        scene.launcher.run()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_the_users_keeps_the_logs(tmp_path: Path) -> None:
    scene = Scene(tmp_path, TEXT + "run_dir: here\n")
    scene.spawn = lambda program, on_exit: (  # type: ignore[method-assign]
        scene.brokers[0].request.joined(program.environment["ZRPC_NAME"]),
        FakeChild(on_exit),
    )[1]
    assert scene.launcher.run() == 0
    assert sorted(path.name for path in (tmp_path / "here").rglob("*")) == ["job.log", "logs", "w.log"]
