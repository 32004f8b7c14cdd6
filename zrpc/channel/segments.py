"""Pieces of shared memory, and how many there may be.

One rule: a segment has no name. It is a descriptor of anonymous memory (memfd), so nothing of it is left anywhere when the
processes that have it end, however they end, and no small /dev/shm is in its way.

Fresh memory is dear: touching 64 MiB for the first time takes 100 ms and more on a VM, copying as much into memory that has
been touched takes 6. So segments are used again and again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

SMALLEST: Final = 1 << 20
"""The smallest segment."""
STEPS: Final = 4
"""Sizes of segments between one power of two and the next: a segment is at most a quarter larger than it was asked for."""
IS_SUPPORTED: Final = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")

_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)

logger = logging.getLogger(__name__)


def size_class(size: int) -> int:
    """The size of the segment for so many bytes."""
    if size <= SMALLEST:
        return SMALLEST
    step = (1 << ((size - 1).bit_length() - 1)) // STEPS
    return -(-size // step) * step


def memory_of_machine() -> int:
    """Bytes of memory that there are for this process and all others: of the machine, or of its container."""
    memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:
        memory = min(memory, int(file.read()))  # ValueError: "max", there is no bound
    return memory


class Segment:
    """A piece of shared memory that this process made. `memory` is a numpy array of its bytes."""

    __slots__ = ("fd", "memory", "number", "size")

    def __init__(self, number: int, size: int) -> None:
        """Raises OSError when the system has none."""
        self.number = number
        self.size = size
        self.fd = os.memfd_create("zrpc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, size)  # memory that is not there would be a SIGBUS later
            # Nobody can take the memory away under whoever has it mapped.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.memory = map_memory(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise

    def __repr__(self) -> str:
        return f"<Segment {self.number} of {self.size} bytes>"

    def forget_descriptor(self) -> None:
        """Whoever should have it has it: the mapping does not need it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Give the memory back; the system keeps it for others who have it mapped."""
        self.forget_descriptor()
        self.memory = np.empty(0, np.uint8)


def map_memory(fd: int, size: int) -> Any:
    """Bytes of a descriptor as a numpy array, which keeps them mapped. Raises OSError."""
    flags = mmap.MAP_SHARED | _POPULATE
    return np.frombuffer(mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE), np.uint8)


def is_sealed(fd: int, size: int) -> bool:
    """Whether a descriptor that came from another process is of so much memory, which stays as it is."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        return os.fstat(fd).st_size == size and bool(seals & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False


class Pool:
    """How much shared memory one agent may have, and who can give some up. Safe to use from any thread.

    A segment belongs to the channel that it was made for, whose other end has it mapped: nobody else ever sees what is in
    it. When there is no room for another one, channels are asked to give up what they do not use.
    """

    def __init__(self, limit: int) -> None:
        # Shared memory cannot be swapped out for free: never more than half of what there is, whatever was asked for.
        self.limit = min(limit, memory_of_machine() // 2)
        self.used = 0
        self._lock = threading.Lock()
        self._next = 0
        self._has_warned = False
        self._givers: list[Callable[[], int]] = []

    def __repr__(self) -> str:
        return f"<Pool {self.used} of {self.limit} bytes>"

    def join(self, give: Callable[[], int]) -> None:
        """`give` gives up one unused segment when it is called, and returns its size; 0 when there is none."""
        self._givers.append(give)

    def leave(self, give: Callable[[], int]) -> None:
        self._givers.remove(give)

    def make(self, size: int) -> Segment | None:
        """A new segment for so many bytes; None when there is no room, or no memory."""
        size = size_class(size)
        number = self._reserve(size)
        if number is None:
            return None
        try:
            return Segment(number, size)
        except (OSError, ValueError) as error:
            self.give_back(size)
            if not self._has_warned:
                self._has_warned = True
                logger.warning("no shared memory for large tensors, which go through sockets: %s", error)
            return None

    def _reserve(self, size: int) -> int | None:
        """Room for a segment: its number, which no other one has. None when there is no room."""
        while True:
            with self._lock:
                if self.used + size <= self.limit:
                    self.used += size
                    self._next += 1
                    return self._next
            if size > self.limit or not any(give() for give in list(self._givers)):
                return None

    def give_back(self, size: int) -> None:
        """A segment of that size is gone."""
        with self._lock:
            self.used -= size
