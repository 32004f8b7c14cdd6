"""Records: read as they were written, and the key of each found, or missed with advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zrpc.errors import ConfigError, JoinRefused
from zrpc.rendezvous.keys import CLUSTER
from zrpc.rendezvous.record import Record, keyring_for
from zrpc.transport.curve import Keyring, new_keyring, write_key_file

KEYRING = new_keyring(CLUSTER)
RECORD = Record("tcp://127.0.0.1:5", "here", KEYRING.fingerprint())


def find(record: Record, security: bool = True, **environ: str) -> Keyring | None:
    return keyring_for(record, "there", security, environ)


def test_a_record_is_read_as_it_was_written() -> None:
    assert Record.from_json(RECORD.to_json()) == RECORD


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"address": ""}', "7", b"\xff\xfe"])
def test_what_is_no_record_is_none(text: str | bytes) -> None:
    assert Record.from_json(text) is None


def test_fields_of_a_later_version_are_ignored() -> None:
    assert Record.from_json('{"address": "tcp://a:1", "colour": "red"}') == Record("tcp://a:1")


def test_the_key_is_in_a_file_on_this_host(tmp_path: Path) -> None:
    path = write_key_file(KEYRING, tmp_path / "key")
    assert find(replace(RECORD, key_path=str(path))) == KEYRING


def test_the_key_is_in_the_record() -> None:
    assert find(replace(RECORD, secret=KEYRING.secret.hex())) == KEYRING


@pytest.mark.parametrize("secret", ["", "zz", "00"])
def test_without_a_key_the_error_says_what_to_set(secret: str) -> None:
    with pytest.raises(
        ConfigError, match=r"'here', this process on 'there' and has no key.*ZRPC_KEY_FILE.*ZRPC_SECRET"
    ):
        find(replace(RECORD, secret=secret, key_path="/nonexistent/key"))


def test_another_key_is_not_tried() -> None:
    with pytest.raises(ConfigError, match="has another key"):
        find(RECORD, ZRPC_SECRET="of sixteen and more characters")


def test_security_is_on_or_off_for_all() -> None:
    assert find(replace(RECORD, fingerprint=""), security=False) is None
    with pytest.raises(ConfigError, match="security is off here and on"):
        find(RECORD, security=False)
    with pytest.raises(ConfigError, match="security is on here and off"):
        find(replace(RECORD, fingerprint=""))


def test_a_failure_is_passed_on() -> None:
    with pytest.raises(JoinRefused, match="rank 2 said no"):
        find(replace(RECORD, failure="rank 2 said no"))
