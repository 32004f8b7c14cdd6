"""What the process with the broker tells the others: where it listens, and how to recognize its key.

One rule: whoever reads a record trusts nothing in it but what the key then proves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from zrpc.errors import ConfigError, JoinRefused, KeyFileError
from zrpc.rendezvous.keys import CLUSTER, keyring_from_environment
from zrpc.transport.curve import SECRET_BYTES, Keyring, load_key_file


@dataclass(frozen=True, slots=True)
class Record:
    """`fingerprint` '' means that the cluster is not encrypted; `key_path` is a file on `host`, `secret` hexadecimal (only
    in a file that nobody else can read)."""

    address: str
    host: str = ""
    fingerprint: str = ""
    key_path: str = ""
    secret: str = ""
    failure: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Record | None:
        """The record in a text, None if there is none."""
        try:
            data: Any = json.loads(text)
        except ValueError:
            return None
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or not data.get("address"):
            return None
        return cls(**{key: str(value) for key, value in data.items() if key in names})


def own_keyring(record: Record) -> Keyring | None:
    """The keyring in a record that has one."""
    try:
        secret = bytes.fromhex(record.secret)
    except ValueError:
        return None
    return Keyring(CLUSTER, secret) if len(secret) == SECRET_BYTES else None


def keyring_for(record: Record, host: str, security: bool, environ: Mapping[str, str]) -> Keyring | None:
    """The key to join with. Raises `ConfigError` when this process, on `host`, does not have it."""
    if record.failure:
        raise JoinRefused(record.failure)
    if not security or not record.fingerprint:
        if security == bool(record.fingerprint):
            return None
        mine, other = ("on", "off") if security else ("off", "on")
        raise ConfigError("init_rpc", [f"security is {mine} here and {other} in the process with the broker"])
    found = keyring_from_environment(environ) or own_keyring(record)
    if found is None and record.key_path:
        try:
            found = load_key_file(record.key_path)
        except KeyFileError:
            found = None
    if found is not None and found.fingerprint() == record.fingerprint:
        return found
    where = f"the broker of this group is on host {record.host!r}, this process on {host!r}"
    what = "has no key for it" if found is None else "has another key"
    raise ConfigError(
        "init_rpc",
        [
            f"{where} and {what}: across hosts, set ZRPC_KEY_FILE (to one file that `zrpc broker --new-key FILE` made) or "
            "ZRPC_SECRET (to one secret text) for all processes"
        ],
    )
