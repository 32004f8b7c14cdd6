from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from zrpc.errors import ConfigError, KeyFileError
from zrpc.launch.byhand import BrokerOrder, run_broker
from zrpc.launch.target import find_target
from zrpc.transport.curve import new_keyring, write_key_file


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_a_broker_serves_until_it_is_stopped(environ: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("start workers with"):
            with find_target(environ).connect() as client:
                assert client.status()["members"] == []
                assert client.stop() == []

    assert run_broker(BrokerOrder("demo"), environ, say) == 0
    assert said[0].startswith("broker of cluster demo at tcp://127.0.0.1:")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_it_and_its_new_key_stays(environ: dict[str, str], tmp_path: Path) -> None:
    key = tmp_path / "cluster.key"

    def say(line: str) -> None:
        if line.startswith("start workers with"):
            assert f"--key-file {key}" in line
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_broker(BrokerOrder(new_key=key), environ, say) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.key"]
    assert run_broker(BrokerOrder(key_file=key), environ, say) == 143


@pytest.mark.parametrize(
    ("bind", "has_key", "secure", "follows"),
    [
        ("tcp://127.0.0.1:0", True, True, False),  # nobody knows the port
        ("tcp://127.0.0.1:{port}", True, True, True),
        ("tcp://127.0.0.1:{port}", False, True, False),  # nobody has the key
        ("tcp://127.0.0.1:{port}", False, False, True),
    ],
)
def test_a_broker_that_may_have_had_another_before_it_says_that_newcomers_wait(
    environ: dict[str, str], tmp_path: Path, bind: str, has_key: bool, secure: bool, follows: bool
) -> None:
    key = write_key_file(new_keyring("demo"), tmp_path / "cluster.key") if has_key else None
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("start workers with"):
            with find_target(environ).connect() as client:
                (began,) = [event for event in client.events() if event["kind"] == "began"]
                assert (began["why"] == "after an earlier one") is follows
                client.stop()

    order = BrokerOrder("demo", bind.format(port=port), key_file=key, secure=secure)
    assert run_broker(order, environ, say) == 0
    assert any("newcomers wait 1.5 s" in line for line in said) is follows


def test_a_standby_says_for_whom_it_stands_by(environ: dict[str, str], tmp_path: Path) -> None:
    key = write_key_file(new_keyring("demo"), tmp_path / "cluster.key")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("start workers with"):
            assert find_target(environ).broker == "tcp://127.0.0.1:1," + said[0].split()[-1]
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_broker(BrokerOrder(key_file=key, standby_for="tcp://127.0.0.1:1"), environ, say) == 143
    assert said[0].startswith("standby for tcp://127.0.0.1:1, broker of cluster demo at tcp://")
    with pytest.raises(ConfigError, match="expected --key-file"):
        run_broker(BrokerOrder(standby_for="tcp://127.0.0.1:1"), environ, say)
    members = write_key_file(new_keyring("demo").for_members(), tmp_path / "member.key")
    with pytest.raises(ConfigError, match="nobody can act as the broker"):
        run_broker(BrokerOrder(key_file=members, standby_for="tcp://127.0.0.1:1"), environ, say)


def test_without_security_it_warns(environ: dict[str, str]) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("start workers with"):
            os.kill(os.getpid(), signal.SIGINT)

    assert run_broker(BrokerOrder(secure=False), environ, say) == 130
    assert said[1].startswith("security is off")
    assert "--key-file" not in said[2]


def test_it_does_not_start(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        run_broker(BrokerOrder(key_file=tmp_path / "none"), environ, print)
    with pytest.raises(ConfigError, match="bind address"):
        run_broker(BrokerOrder(bind="tcp://300.0.0.1:1"), environ, print)
    assert list(tmp_path.iterdir()) == []
