"""Meeting at a file: who has the broker, what is stale, what is left.

Locks are a process's, not a thread's: where two have to differ, the other one is a process that holds the file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zrpc.clock import monotonic
from zrpc.errors import ConfigError, GroupTimeout
from zrpc.rendezvous.files import FileMeeting
from zrpc.rendezvous.meeting import Party
from zrpc.rendezvous.record import Record
from zrpc.transport.curve import new_keyring

BIND = "tcp://127.0.0.1:0"
HOLD = """
import fcntl, sys
stream = open(sys.argv[1], "r+")
fcntl.lockf(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def soon(seconds: float = 0.1) -> float:
    return monotonic() + seconds


def meeting(tmp_path: Path, rank: int, world_size: int, round_: int = 0) -> FileMeeting:
    return FileMeeting(Party(rank, world_size, round_), str(tmp_path / "meet"), BIND)


def write(tmp_path: Path, record: Record) -> Path:
    path = tmp_path / "meet.zrpc"
    path.write_text(record.to_json())
    path.chmod(0o600)
    return path


def test_rank_0_has_the_broker_and_leaves_nothing(tmp_path: Path) -> None:
    host = meeting(tmp_path, 0, 2)
    place = host.find(soon())
    try:
        record = Record.from_json((tmp_path / "meet.zrpc").read_text())
        assert record is not None
        assert (record.address, bytes.fromhex(record.secret)) == (place.address, place.keyring and place.keyring.secret)
        assert (tmp_path / "meet.zrpc").stat().st_mode & 0o077 == 0
        assert host.find(soon()) == place
    finally:
        host.end(True)
    assert list(tmp_path.iterdir()) == []


def test_a_guest_takes_the_record_of_who_holds_the_file(tmp_path: Path) -> None:
    keyring = new_keyring("zrpc")
    path = write(tmp_path, Record("tcp://127.0.0.1:5", "h", keyring.fingerprint(), secret=keyring.secret.hex()))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for world_size in (0, 2):
            place = meeting(tmp_path, 1, world_size).find(soon(5))
            assert (place.address, place.keyring) == ("tcp://127.0.0.1:5", keyring)
        with pytest.raises(GroupTimeout):  # it is rank 0's to have the broker, and somebody else has
            meeting(tmp_path, 0, 2).find(soon())
        holder.communicate()


def test_a_record_that_nobody_holds_is_stale(tmp_path: Path) -> None:
    write(tmp_path, Record("tcp://127.0.0.1:5"))
    with pytest.raises(GroupTimeout, match="rank 0"):
        meeting(tmp_path, 1, 2).find(soon())


def test_a_newcomer_to_a_dynamic_group_takes_over_address_and_key(tmp_path: Path) -> None:
    first = meeting(tmp_path, 0, 0)
    place = first.find(soon())
    text = (tmp_path / "meet.zrpc").read_text()
    first.end(True)
    write(tmp_path, Record("")).write_text(text)  # as a crash would have left it
    heir = meeting(tmp_path, 1, 0)
    try:
        assert heir.find(soon()) == place
    finally:
        heir.end(True)


def test_a_static_group_takes_over_nothing(tmp_path: Path) -> None:
    keyring = new_keyring("zrpc")
    write(tmp_path, Record("tcp://127.0.0.1:5", "h", keyring.fingerprint(), secret=keyring.secret.hex()))
    host = meeting(tmp_path, 0, 2)
    try:
        place = host.find(soon())
        assert place.address != "tcp://127.0.0.1:5"
        assert place.keyring != keyring
    finally:
        host.fail()
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_set_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRPC_SECRET", "sixteen characters and more")
    host = meeting(tmp_path, 0, 2)
    host.find(soon())
    try:
        record = Record.from_json((tmp_path / "meet.zrpc").read_text())
        assert record is not None
        assert (record.secret, record.key_path) == ("", "")
    finally:
        host.end(True)


def test_the_second_group_meets_at_another_file(tmp_path: Path) -> None:
    assert meeting(tmp_path, 0, 2, 1).path != meeting(tmp_path, 0, 2).path


def test_a_file_of_everybodys_is_refused(tmp_path: Path) -> None:
    write(tmp_path, Record("")).chmod(0o644)
    with pytest.raises(ConfigError, match="can be used by others"):
        meeting(tmp_path, 0, 2).find(soon())


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meet.zrpc").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be used"):
        meeting(tmp_path, 0, 2).find(soon())


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        meeting(tmp_path / "nowhere", 0, 2).find(soon())
