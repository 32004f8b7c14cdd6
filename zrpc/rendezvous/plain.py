"""Meeting at a host and port, without `torch.distributed`: the broker itself is there.

One rule: the key is in the user's own directory, in a file named after the address; without it nobody gets in.
"""

from __future__ import annotations

import os
from pathlib import Path

from zrpc.clock import monotonic
from zrpc.errors import KeyFileError
from zrpc.rendezvous.keys import CLUSTER, keyring_from_environment, private_directory
from zrpc.rendezvous.meeting import PATIENCE, Meeting, Party, Place, endpoint, interface_towards, is_loopback
from zrpc.transport.curve import Keyring, load_key_file, new_keyring, write_key_file


class PlainMeeting(Meeting):
    """A rendezvous at `host` and `port`, where rank 0 has the broker."""

    patience = PATIENCE

    def __init__(self, party: Party, host: str, port: int) -> None:
        super().__init__(party)
        self._host = host
        self._address = endpoint("127.0.0.1" if is_loopback(host) else host, port)
        self._name = f"at-{host.replace(':', '_')}-{port}.key"

    def find(self, deadline: float) -> Place:
        interface = "127.0.0.1" if is_loopback(self._host) else interface_towards(self._host)
        if self.party.rank == 0:
            keyring = self._make_key()
            self._serve(keyring, (self._address,))
            return Place(self._address, keyring, interface)
        return Place(self._address, self._wait_for_key(deadline), interface)

    def _withdraw(self, is_empty: bool) -> None:
        """The key file is gone already, and there is nothing else."""

    def _make_key(self) -> Keyring | None:
        found = self._key_that_is_set()
        if found is not None or not self.party.security:
            return found
        keyring = new_keyring(CLUSTER)
        path = private_directory(os.environ) / self._name
        fresh = write_key_file(keyring, path.with_suffix(f".{os.getpid()}"))
        os.replace(fresh, path)  # a stale one of an earlier group goes
        self._key_path = path
        return keyring

    def _key_that_is_set(self) -> Keyring | None:
        return keyring_from_environment(os.environ) if self.party.security else None

    def _wait_for_key(self, deadline: float) -> Keyring | None:
        found = self._key_that_is_set()
        if found is not None or not self.party.security:
            return found
        began = monotonic()
        path: Path = private_directory(os.environ) / self._name
        while True:
            try:
                return load_key_file(path)
            except KeyFileError:
                if path.exists():
                    raise
            self._pause_until(deadline, began)
