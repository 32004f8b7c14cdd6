"""Meeting at a file: `init_method="file:///path"`.

One rule: who holds the lock on the file beside it, `path.zrpc`, has the broker; its record is in that file. The lock goes
with its process, however that ends, so a record that nobody holds is stale. The file of the init method itself is not
touched: torch's own `FileStore` may be there.

A static group's broker is in the process of rank 0. In a dynamic group whoever comes first has it, and when that process
is gone while others stay, the next newcomer takes over, at the same address, where the others come back to it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import replace

from zrpc.clock import monotonic
from zrpc.errors import ConfigError
from zrpc.rendezvous.keys import CLUSTER, keyring_from_environment
from zrpc.rendezvous.meeting import PATIENCE, Meeting, Party, Place, endpoint
from zrpc.rendezvous.record import Record, own_keyring
from zrpc.transport.curve import Keyring, new_keyring

LARGEST = 65536


class FileMeeting(Meeting):
    """A rendezvous at a file. `bind` is the address that a broker listens at, its port aside."""

    patience = PATIENCE

    def __init__(self, party: Party, path: str, bind: str) -> None:
        super().__init__(party)
        self.path = f"{path}.zrpc{party.round or ''}"
        self._host = bind.rpartition(":")[0].removeprefix("tcp://").strip("[]")
        self._fd: int | None = None
        self._keyring: Keyring | None = None

    def find(self, deadline: float) -> Place:
        if self.broker is not None:
            return self._own_place()
        began = monotonic()
        may_host = self.party.world_size == 0 or self.party.rank == 0
        while True:
            fd = self._open(may_host)
            if fd is not None:
                if may_host and self._lock(fd, fcntl.LOCK_EX):
                    self._fd = fd
                    return self._begin(fd)
                is_stale = not may_host and self._lock(fd, fcntl.LOCK_SH)
                record = None if is_stale else self._read(fd)
                os.close(fd)  # and with it a lock that was only a question
                if record is not None and (self.party.rank or not self.party.world_size):
                    return Place(record.address, self._key_for(record), self._host)
            self._pause_until(deadline, began)

    def _own_place(self) -> Place:
        assert self.broker is not None
        return Place(self.broker.address, self._keyring, self._host)

    def _open(self, create: bool) -> int | None:
        """The file, if it is there and this user's alone."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            fd = os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            if create:
                raise ConfigError("init_rpc", [f"init_method: there is no directory for {self.path}"]) from None
            return None
        except OSError as error:
            raise ConfigError("init_rpc", [f"init_method: {self.path} cannot be used ({error.strerror})"]) from None
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            os.close(fd)
            raise ConfigError("init_rpc", [f"init_method: {self.path} can be used by others than this user; remove it"])
        return fd

    def _lock(self, fd: int, kind: int) -> bool:
        """Take the lock, if nobody has it and the file is still the one at the path."""
        try:
            fcntl.lockf(fd, kind | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        here = os.fstat(fd)
        if kind == fcntl.LOCK_EX and (there is None or (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev)):
            fcntl.lockf(fd, fcntl.LOCK_UN)
            return False
        return True

    @staticmethod
    def _read(fd: int) -> Record | None:
        return Record.from_json(os.pread(fd, LARGEST, 0))

    def _begin(self, fd: int) -> Place:
        """Have the broker; of a dynamic group whose broker is gone, its successor."""
        old = None if self.party.world_size else self._read(fd)
        os.ftruncate(fd, 0)  # nobody is to take the stale record for ours
        self._keyring, is_set = self._find_key(old)
        here = endpoint(self._host)
        broker = self._serve(
            self._keyring, (here,) if old is None else (old.address, here), is_successor=old is not None
        )
        record = self._describe(broker.address, self._keyring)
        if self._keyring is not None and not is_set:
            record = replace(record, secret=self._keyring.secret.hex())
        os.pwrite(fd, record.to_json().encode(), 0)
        return self._own_place()

    def _find_key(self, old: Record | None) -> tuple[Keyring | None, bool]:
        """The key of the cluster, and whether it was set for this process: else it goes into the record."""
        if not self.party.security:
            return None, False
        found = keyring_from_environment(os.environ)
        if found is not None:
            return found, True
        return (old and own_keyring(old)) or new_keyring(CLUSTER), False

    def _withdraw(self, is_empty: bool) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        if is_empty or self.party.world_size:
            try:
                os.unlink(self.path)
            except OSError:
                pass  # somebody cleaned up
        os.close(fd)
