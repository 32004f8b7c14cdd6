from __future__ import annotations

from pathlib import Path

import pytest

from zrpc.errors import ConfigError, KeyFileError
from zrpc.launch.rundir import RunDirectory
from zrpc.launch.target import Target, find_target


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_the_newest_that_runs(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="none of yours runs on this host"):
        find_target(environ)
    run = RunDirectory.create("c", environ)
    run.write_record("c", "tcp://127.0.0.1:1", run.key_file)
    assert find_target(environ) == Target("tcp://127.0.0.1:1", str(run.key_file))


def test_what_the_user_says_wins(environ: dict[str, str], tmp_path: Path) -> None:
    run = RunDirectory.create("c", environ)
    run.write_record("c", "tcp://127.0.0.1:1", run.key_file)
    away = {**environ, "ZRPC_BROKER": "tcp://10.0.0.1:5", "ZRPC_KEY_FILE": "/away/key"}
    assert find_target(away) == Target("tcp://10.0.0.1:5", "/away/key")
    assert find_target(away, "tcp://10.0.0.2:5", "/mine") == Target("tcp://10.0.0.2:5", "/mine")
    assert find_target(environ, "tcp://127.0.0.1:1") == Target("tcp://127.0.0.1:1", str(run.key_file))
    assert find_target(environ, "tcp://127.0.0.1:2") == Target("tcp://127.0.0.1:2", None)
    assert find_target(away, run_dir=str(run.path)) == Target("tcp://127.0.0.1:1", str(run.key_file))
    with pytest.raises(ConfigError, match="no cluster runs there"):
        find_target(environ, run_dir=str(tmp_path))


def test_keys_are_read_when_they_are_needed(tmp_path: Path) -> None:
    assert Target("tcp://127.0.0.1:1").keyring() is None
    with pytest.raises(KeyFileError):
        Target("tcp://127.0.0.1:1", str(tmp_path / "none")).connect()
