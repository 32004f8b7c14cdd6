"""Key files: made safe, refused when they are not."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from zrpc.errors import KeyFileError
from zrpc.transport.curve import KeyPair, Keyring, load_key_file, new_keyring, parse_key, write_key_file


def test_a_key_file_round_trip_and_its_mode(tmp_path: Path) -> None:
    keyring = new_keyring("c")
    path = write_key_file(keyring, tmp_path / "key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key_file(path) == keyring


def test_the_secret_is_in_no_repr() -> None:
    keyring = new_keyring("c")
    assert keyring.secret.hex() not in repr(keyring)
    assert repr(keyring.secret) not in repr(keyring)
    assert keyring.pair("member").secret.decode() not in repr(keyring.pair("member"))


def test_pairs_differ_by_role_cluster_and_secret_and_by_nothing_else() -> None:
    a, b = Keyring("c", b"1" * 32), Keyring("c", b"1" * 32)
    assert a.pair("member") == b.pair("member")
    others = {
        a.pair("broker").public,
        Keyring("d", b"1" * 32).pair("member").public,
        Keyring("c", b"2" * 32).pair("member").public,
    }
    assert len(others | {a.pair("member").public}) == 4


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key_file(new_keyring("c"), tmp_path / "key")
    os.chmod(path, mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "{}",
        json.dumps({"zrpc-key": 1, "cluster": "c"}),
        json.dumps({"zrpc-key": 1, "cluster": "c", "secret": "zz"}),
        json.dumps({"zrpc-key": 1, "cluster": "c", "secret": "00"}),
        json.dumps({"zrpc-key": 1, "cluster": 5, "secret": "00" * 32}),
        json.dumps({"zrpc-key": 2, "cluster": "c", "secret": "00" * 32}),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        load_key_file(path)


def test_a_missing_file_and_a_file_that_exists(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="zrpc launch"):
        load_key_file(tmp_path / "none")
    path = write_key_file(new_keyring("c"), tmp_path / "key")
    with pytest.raises(KeyFileError, match="exists already"):
        write_key_file(new_keyring("c"), path)


def test_a_members_key_file_has_its_pair_and_not_the_brokers_secret(tmp_path: Path) -> None:
    whole = new_keyring("c")
    target = write_key_file(whole.for_members(), tmp_path / "members.key")
    members = load_key_file(target)
    assert members == whole.for_members() == members.for_members()
    assert members.pair("member") == whole.pair("member")
    assert members.pair("broker") == KeyPair(whole.pair("broker").public, b"")
    assert members.fingerprint() == whole.fingerprint()
    text = target.read_text()
    assert whole.secret.hex() not in text
    assert whole.pair("broker").secret.decode() not in text
    with pytest.raises(ValueError, match="no role 'king'"):
        members.pair("king")


@pytest.mark.parametrize("change", [{"broker": "short"}, {"member": 7}, {"cluster": None}, {"fingerprint": 1}])
def test_a_malformed_members_key_file_is_refused(change: dict[str, object]) -> None:
    value = {**json.loads(new_keyring("c").for_members().to_json()), **change}
    with pytest.raises(KeyFileError, match="it is not a zrpc key file"):
        parse_key(json.dumps(value), "key")
