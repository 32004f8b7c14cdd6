from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest

from zrpc.errors import ConfigError
from zrpc.launch.rundir import KEPT, RunDirectory, base_directory, find_running, read_record


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_is_private_and_found_until_it_ends(environ: dict[str, str], tmp_path: Path) -> None:
    run = RunDirectory.create("demo", environ)
    assert (mode(run.path), mode(run.path.parent), mode(run.logs)) == (0o700, 0o700, 0o700)
    run.key_file.write_text("secret")
    record = run.write_record("demo", "tcp://127.0.0.1:1", run.key_file)
    assert find_running(environ) == [record]
    assert mode(run.path / "cluster.json") == 0o600
    assert not run.finish(keep_logs=False)
    assert list(tmp_path.iterdir()) == []
    assert find_running(environ) == []


def test_the_newest_comes_first(environ: dict[str, str]) -> None:
    old, new = RunDirectory.create("old", environ), RunDirectory.create("new", environ)
    record = old.write_record("old", "tcp://127.0.0.1:1", None)
    new.write_record("new", "tcp://127.0.0.1:2", None)
    (old.path / "cluster.json").write_text(
        json.dumps({"zrpc-cluster": 1, **dataclasses.asdict(record), "started": record.started - 0.5})
    )
    assert [found.cluster for found in find_running(environ)] == ["new", "old"]


def test_logs_are_kept_after_a_failure(environ: dict[str, str]) -> None:
    run = RunDirectory.create("demo", environ)
    run.key_file.write_text("secret")
    (run.logs / "a.log").write_text("text")
    assert run.finish(keep_logs=True)
    assert [path.name for path in run.path.iterdir()] == ["logs"]


def test_what_the_dead_have_left_is_removed(environ: dict[str, str]) -> None:
    left = []
    for _ in range(KEPT + 3):
        run = RunDirectory.create("demo", environ)
        record = run.write_record("demo", "tcp://127.0.0.1:1", None)
        run.key_file.write_text("secret")
        dead = {"zrpc-cluster": 1, **dataclasses.asdict(record), "started": 1.0}
        (run.path / "cluster.json").write_text(json.dumps(dead))
        left.append(run)
    assert find_running(environ) == []
    RunDirectory.create("demo", environ)
    remaining = [run for run in left if run.path.exists()]
    assert len(remaining) == KEPT
    assert not any(run.key_file.exists() for run in remaining)


def test_a_place_of_the_users(environ: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "mine" / "run"
    run = RunDirectory.create("demo", environ, place)
    run.write_record("demo", "tcp://127.0.0.1:1", None)
    with pytest.raises(ConfigError, match="cluster 'demo' runs there"):
        RunDirectory.create("demo", environ, place)
    assert run.finish(keep_logs=False)
    assert RunDirectory.create("demo", environ, place).path == place


def test_a_place_that_others_can_enter_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        RunDirectory.create("demo", environ, place)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="File exists"):
        RunDirectory.create("demo", environ, tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"zrpc-cluster": 2}', '{"zrpc-cluster": 1, "x": 1}'])
def test_records_of_others_are_ignored(environ: dict[str, str], text: str) -> None:
    run = RunDirectory.create("demo", environ)
    (run.path / "cluster.json").write_text(text)
    assert read_record(run.path) is None


def test_without_a_runtime_directory() -> None:
    assert base_directory({}).name == f"zrpc-{os.getuid()}"
    assert base_directory({"XDG_RUNTIME_DIR": "/nowhere"}).name == f"zrpc-{os.getuid()}"
