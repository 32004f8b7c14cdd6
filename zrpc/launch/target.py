"""Which cluster a command means, and how to reach it.

One rule: what the user says wins over the environment, and that over the newest cluster that runs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zrpc.broker.admin import AdminClient
from zrpc.broker.lines import split_addresses
from zrpc.errors import ConfigError
from zrpc.launch.rundir import find_running, read_record
from zrpc.transport.curve import Keyring, load_key_file


@dataclass(frozen=True)
class Target:
    """A cluster: its broker's address (or several, with commas between), and the file with its key (None: no security)."""

    broker: str
    key_file: str | None = None

    def keyring(self) -> Keyring | None:
        """The cluster's keys. Raises `KeyFileError`."""
        return None if self.key_file is None else load_key_file(self.key_file)

    def connect(self) -> AdminClient:
        """A client that asks questions; use it as a context manager. Raises `KeyFileError`."""
        return AdminClient(self.broker, self.keyring())


def find_target(
    environ: Mapping[str, str], broker: str | None = None, key_file: str | None = None, run_dir: str | None = None
) -> Target:
    """The cluster that is meant. Raises `ConfigError` when there is none."""
    if run_dir is not None:
        record = read_record(Path(run_dir))
        if record is None or not record.is_running():
            raise ConfigError(f"run directory {run_dir}", ["no cluster runs there"])
        return Target(record.broker, key_file or record.key_file)
    address = broker or environ.get("ZRPC_BROKER")
    key = key_file or environ.get("ZRPC_KEY_FILE")
    running = find_running(environ)
    if address:
        # Without a key the cluster may still be one of ours, whose key we know.
        asked = set(split_addresses(address))
        known = next((record.key_file for record in running if asked & set(split_addresses(record.broker))), None)
        return Target(address, key or known)
    if not running:
        remedy = "start one with `zrpc launch CONFIG`, or name it with --broker and --key-file"
        raise ConfigError("cluster", [f"none of yours runs on this host: {remedy}"])
    return Target(running[0].broker, key_file or running[0].key_file)
