from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zrpc.cli.main import COMMANDS, main
from zrpc.version import __version__

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("ZRPC_BROKER", "ZRPC_KEY_FILE", "ZRPC_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("command", [*COMMANDS, "config check", "config show"])
def test_every_help_has_examples_and_exit_codes(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Exit codes:" in result.output
    if command != "config":
        assert "Example" in result.output


def test_version_and_help(run: Run) -> None:
    assert run("--version").output == f"zrpc, version {__version__}\n"
    assert all(f"  {name} " in run("--help").output for name in COMMANDS)


@pytest.mark.parametrize("arguments", [("nonsense",), ("launch",), ("launch", "--nonsense"), ("completion", "tcsh")])
def test_bad_usage(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_config_check_and_show(run: Run) -> None:
    path = str(ROOT / "configs" / "quickstart.yaml")
    result = run("config", "check", path, "--set", "roles.stage.count=3")
    assert result.exit_code == 0
    assert result.output.endswith("good; it starts stage-0, stage-1, stage-2, job\n")
    result = run("config", "show", path)
    assert "stop_timeout: 5.0" in result.output


def test_a_bad_configuration(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("roles:\n  shard:\n    cuont: two\nsecurity: perhaps\n")
    for command in (("config", "check"), ("launch",)):
        result = run(*command, str(path))
        assert result.exit_code == 2
        assert f"{path}:3: roles.shard.cuont: there is no such key; did you mean 'count'?" in result.output
        assert f"{path}:4: security: expected on or off, found 'perhaps'" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [("status",), ("stop",), ("doctor",), ("call", "w", "f"), ("worker", "w")])
def test_no_cluster(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command)
    assert result.exit_code == 2
    assert "zrpc: ConfigError: cluster: none of yours runs on this host" in result.output


def test_a_broker_that_is_not_there(run: Run) -> None:
    result = run("status", "--broker", "tcp://127.0.0.1:1", "--timeout", "0.2")
    assert result.exit_code == 4
    assert "zrpc: BrokerUnreachable: no broker answered at tcp://127.0.0.1:1 for 0.2 s" in result.output


def test_debugging_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRPC_DEBUG", "1")
    assert type(run("status").exception).__name__ == "ConfigError"


def test_a_broker_with_two_keys(run: Run) -> None:
    result = run("broker", "--new-key", "a", "--key-file", "b")
    assert result.exit_code == 2
    assert "exclude one another" in result.output


def test_a_key_file_that_others_can_read(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(json.dumps({}))
    key.chmod(0o644)
    result = run("status", "--broker", "tcp://127.0.0.1:1", "--key-file", str(key))
    assert result.exit_code == 2
    assert f"chmod 600 {key}" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_ZRPC_COMPLETE" in result.output


def test_commands_are_short() -> None:
    for folder in ("cli", "workers"):
        for path in (ROOT / folder).glob("*.py"):
            assert len(path.read_text().splitlines()) <= 60, path
