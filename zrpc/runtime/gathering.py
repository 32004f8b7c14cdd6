"""Collectives over calls: each worker's part of an all-gather.

One rule: a gathering is known by its workers and by how many the same workers had before; it ends for a worker when the
leader (the first by name) has told it the whole, or when one of the workers is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zrpc.clock import Clock, monotonic, time_left
from zrpc.errors import LocalFault, Unavailable, WorkerLost
from zrpc.runtime.executor import blocking_here


@dataclass(slots=True)
class Gathering:
    """What has come in of one gathering, and what has come of it."""

    names: frozenset[str] = frozenset()
    objects: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    lost: tuple[str, str] | None = None
    deserters: dict[str, str] = field(default_factory=dict)
    failure: str = ""


class Gatherings:
    """The gatherings of one worker that are under way. Safe to use from any thread."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._counts: dict[frozenset[str], int] = {}
        self._open: dict[str, Gathering] = {}

    def begin(self, names: Iterable[str]) -> str:
        """The key of this worker's next gathering with those workers."""
        group = frozenset(names)
        with self._changed:
            count = self._counts[group] = self._counts.get(group, -1) + 1
            key = f"{','.join(sorted(group))}#{count}"
            self._find(key).names = group
            return key

    def _find(self, key: str) -> Gathering:
        return self._open.setdefault(key, Gathering())

    def add(self, key: str, names: Iterable[str], name: str, value: Any) -> None:
        """At the leader: `name` has come, with its value. Raises `LocalFault` when it has before, or does not belong."""
        with self._changed:
            gathering = self._find(key)
            gathering.names = group = frozenset(names)
            if name not in group:
                raise LocalFault(f"worker {name!r} is not one of those that gather: {', '.join(sorted(group))}")
            if name in gathering.objects:
                raise LocalFault(f"worker {name!r} has come to gathering {key} twice")
            gathering.objects[name] = value
            gathering.is_complete = len(gathering.objects) == len(group)
            self._changed.notify_all()

    def desert(self, key: str, name: str, why: str) -> None:
        """At the leader: `name` does not come, because its message took too long."""
        with self._changed:
            self._find(key).deserters[name] = why
            self._changed.notify_all()

    def deserters(self, key: str) -> dict[str, str]:
        """Who does not come, and why."""
        with self._changed:
            return dict(self._find(key).deserters)

    def settle(self, key: str, objects: dict[str, Any]) -> None:
        """At the others: the leader says what came together."""
        with self._changed:
            gathering = self._find(key)
            gathering.objects = objects
            gathering.is_complete = True
            self._changed.notify_all()

    def dissolve(self, key: str, why: str) -> None:
        """At the others: the leader says that it came to nothing."""
        with self._changed:
            self._find(key).failure = why
            self._changed.notify_all()

    def wait(self, key: str, deadline: float | None) -> bool:
        """Wait for the whole, or until somebody has said not to come; False at the deadline.

        Raises `WorkerLost` when somebody is gone, `Unavailable` when the leader has given up.
        """
        with blocking_here(), self._changed:
            gathering = self._find(key)
            while not gathering.is_complete and not gathering.deserters:
                if gathering.failure:
                    raise Unavailable(gathering.failure)
                if gathering.lost is not None:
                    raise WorkerLost(*gathering.lost, "gathering with it")
                left = time_left(deadline, self._clock())
                if left == 0.0:
                    return False
                self._changed.wait(left)
            return True

    def take(self, key: str) -> dict[str, Any]:
        """What has come together, as far as it has; the gathering is over here."""
        with self._changed:
            found = self._open.pop(key, None)
            return {} if found is None else found.objects

    def lose(self, name: str, why: str) -> None:
        """A worker is gone: gatherings that wait for it are over, unless it has left after it had done its part."""
        with self._changed:
            for gathering in self._open.values():
                if name in gathering.names and name not in gathering.objects:
                    gathering.lost = (name, why)
            self._changed.notify_all()
