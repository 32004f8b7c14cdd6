"""The key of a cluster that nobody set up: from the environment, or made by the process that embeds the broker.

One rule: a key never travels over the network. On one host it is in a file of the user's that nobody else can read; across
hosts `ZRPC_KEY_FILE` or `ZRPC_SECRET` has to be set, for all.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from zrpc.errors import ConfigError, KeyFileError
from zrpc.transport.curve import Keyring, load_key_file, new_keyring, write_key_file

CLUSTER = "zrpc"
"""The name of every cluster that meets by an init method. Keys differ, names need not."""
SHORTEST_SECRET = 16


def keyring_from_environment(environ: Mapping[str, str]) -> Keyring | None:
    """The key that was set for this process, None if none was.

    `ZRPC_KEY_FILE` names a key file; `ZRPC_SECRET` is a text of at least 16 characters. Raises `KeyFileError` or
    `ConfigError` when it cannot be used.
    """
    path = environ.get("ZRPC_KEY_FILE", "")
    if path:
        return load_key_file(path)
    text = environ.get("ZRPC_SECRET", "")
    if not text:
        return None
    if len(text) < SHORTEST_SECRET:
        problem = f"expected at least {SHORTEST_SECRET} characters, not {len(text)}: a short secret can be guessed"
        raise ConfigError("environment variable ZRPC_SECRET", [problem])
    return Keyring(CLUSTER, hashlib.blake2b(text.encode(), digest_size=32, person=b"zrpc secret").digest())


def make_local_key(environ: Mapping[str, str]) -> tuple[Keyring, Path]:
    """A fresh key in a file that only this user can read: the key and the file. The caller removes it."""
    keyring = new_keyring(CLUSTER)
    return keyring, write_key_file(keyring, private_directory(environ) / f"{secrets.token_hex(8)}.key")


def private_directory(environ: Mapping[str, str]) -> Path:
    """The user's own directory for keys, made if it is not there. Raises `KeyFileError` when others could write to it."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    path = Path(base) / "zrpc" if base else Path(tempfile.gettempdir()) / f"zrpc-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise KeyFileError(
            str(path), f"the directory cannot be made ({error.strerror})", "Set ZRPC_KEY_FILE."
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise KeyFileError(str(path), "it is not a directory that only this user can use", "Remove it.")
    return path
