"""Where keys come from, and who can read them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from zrpc.errors import ConfigError, KeyFileError
from zrpc.rendezvous.keys import keyring_from_environment, make_local_key, private_directory
from zrpc.transport.curve import load_key_file, new_keyring, write_key_file


def test_nothing_is_set() -> None:
    assert keyring_from_environment({}) is None


def test_a_key_file_wins_over_a_secret(tmp_path: Path) -> None:
    path = write_key_file(new_keyring("c"), tmp_path / "key")
    found = keyring_from_environment({"ZRPC_KEY_FILE": str(path), "ZRPC_SECRET": "x" * 20})
    assert found == load_key_file(path)


def test_a_secret_is_a_key_and_only_the_same_secret_is_the_same() -> None:
    one, same, other = (keyring_from_environment({"ZRPC_SECRET": text}) for text in ("a" * 16, "a" * 16, "a" * 17))
    assert one is not None
    assert other is not None
    assert one == same
    assert one.fingerprint() != other.fingerprint()


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16 characters, not 3"):
        keyring_from_environment({"ZRPC_SECRET": "abc"})


def test_a_local_key_is_the_users_alone(tmp_path: Path) -> None:
    keyring, path = make_local_key({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert load_key_file(path) == keyring
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_directory_that_others_can_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zrpc").mkdir(mode=0o755)
    (tmp_path / "zrpc").chmod(0o755)
    with pytest.raises(KeyFileError, match="only this user"):
        private_directory({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "zrpc").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        private_directory({"XDG_RUNTIME_DIR": str(tmp_path)})
