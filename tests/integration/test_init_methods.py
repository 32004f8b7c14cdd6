"""Groups that meet at an init method, with nothing started before: real processes, all ways to meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def play(tmp_path: Path, program: str, world_size: int, method: str) -> None:
    """Run a program of `ranks`; nothing is left in the file system."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ZRPC_")}
    port = str(free_port())
    url = {"file": f"file://{tmp_path}/meet", "tcp": f"tcp://127.0.0.1:{port}", "env": "env://"}[method]
    keys = tmp_path / "keys"
    keys.mkdir()
    done = subprocess.run(
        [sys.executable, str(HERE / "ranks.py"), program, str(world_size), url],
        env={**environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "XDG_RUNTIME_DIR": str(keys)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    if program not in ("come_and_go", "first_dies"):  # who is killed cannot tidy up
        assert not list(tmp_path.glob("*.zrpc*"))
        assert not list(keys.glob("zrpc/*"))


@pytest.mark.parametrize("method", ["file", "tcp", "env"])
def test_a_group_meets_again_and_again(tmp_path: Path, method: str) -> None:
    play(tmp_path, "again", 3, method)


@pytest.mark.parametrize("method", ["file", "tcp"])
def test_all_hear_of_a_duplicate_name(tmp_path: Path, method: str) -> None:
    play(tmp_path, "duplicate", 3, method)


@pytest.mark.parametrize("method", ["file", "env"])
def test_a_process_group_may_meet_at_the_same_place(tmp_path: Path, method: str) -> None:
    play(tmp_path, "with_group", 2, method)


def test_a_dynamic_group_survives_its_first(tmp_path: Path) -> None:
    play(tmp_path, "come_and_go", 4, "file")


def test_static_and_dynamic_do_not_mix(tmp_path: Path) -> None:
    play(tmp_path, "mixed", 3, "file")


def test_another_secret_does_not_get_in(tmp_path: Path) -> None:
    play(tmp_path, "other_secret", 3, "tcp")


def test_the_loss_of_rank_0_ends_nothing(tmp_path: Path) -> None:
    play(tmp_path, "first_dies", 3, "file")


def test_who_has_nothing_to_do_serves_until_all_are_done(tmp_path: Path) -> None:
    play(tmp_path, "uneven", 3, "file")
