"""Identity: worker names and ids, and the ids of references and messages.

One rule: an id is never given twice in a cluster's life. A worker id belongs to a name and stays with it over restarts
(it is the rank where there are ranks); the incarnation tells one life of the worker from the next. Ids that a worker
makes itself (of RRefs, forks and contexts) carry its *life*, a small number that the broker raises at each restart of the
name, in their upper bits, so that a restarted worker does not make them again:

    local id (63 bits)   | life: 31 bits | counter: 32 bits |      life 0 counts 0, 1, 2, ... as torch's RPC does
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from zrpc.errors import InvalidName

BROKER_ID = -1
"""The sender id of a broker."""
NO_ID = -2
"""The sender id of a process that the broker has not yet given one."""

MAX_NAME_LENGTH = 127
"""torch's limit: a name is shorter than 128 characters."""
LIFE_SHIFT = 32
MAX_LIFE = (1 << 31) - 1

_NAME = re.compile(r"[A-Za-z0-9_:\-]+\Z")


def check_name(name: str) -> str:
    """Return `name` if it may name a worker (letters, digits, `_`, `:`, `-`; 1 to 127 of them); raise `InvalidName`."""
    if not isinstance(name, str):
        raise InvalidName(repr(name), "a worker name is a str")
    if not name:
        raise InvalidName(name, "Worker name must be non-empty")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(name, f"Worker name must be shorter than 128, this one has {len(name)} characters")
    if not _NAME.match(name):
        raise InvalidName(name, "Worker name must match ^[A-Za-z0-9-_:]*$")
    return name


class GloballyUniqueId(NamedTuple):
    """An id made by worker `created_on`; `local_id` is unique there over all its lives."""

    created_on: int
    local_id: int

    def __repr__(self) -> str:
        return f"GloballyUniqueId(created_on={self.created_on}, local_id={self.local_id})"


RRefId = GloballyUniqueId
"""Names one remote value, on all workers."""
ForkId = GloballyUniqueId
"""Names one user of a remote value (one fork of the reference)."""


class LocalIds:
    """Makes the ids of one worker in one life. Safe to call from any thread (one C call takes each number)."""

    def __init__(self, worker_id: int, life: int = 0) -> None:
        if not 0 <= life <= MAX_LIFE:
            raise ValueError(f"life {life} is not in 0..{MAX_LIFE}")
        self.worker_id = worker_id
        self.life = life
        self._next: Iterator[int] = itertools.count(life << LIFE_SHIFT)

    def __call__(self) -> GloballyUniqueId:
        return GloballyUniqueId(self.worker_id, next(self._next))

    def __repr__(self) -> str:
        return f"LocalIds(worker_id={self.worker_id}, life={self.life})"


class _WorkerInfo(NamedTuple):
    name: str
    id: int


class WorkerInfo(_WorkerInfo):
    """A worker as others know it: its name and its id. Raises `InvalidName` for what cannot be a worker's name."""

    __slots__ = ()

    def __new__(cls, name: str, id: int) -> WorkerInfo:
        return super().__new__(cls, check_name(name), id)

    def __repr__(self) -> str:
        return f"WorkerInfo(id={self.id}, name={self.name})"
