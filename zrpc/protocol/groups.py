"""Group forming: who is there, who is missing, and when those who wait are let in.

One rule: a member waits for what its HELLO says and for nothing else: with `world_size`, for that many static members;
with `wait`, for all the names that the broker was told to expect; with neither, for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from zrpc.errors import JoinRefused, ZrpcError
from zrpc.protocol.membership import Record
from zrpc.wire.messages import MAX_TOLD, GroupProgress, Hello

MIXED: Final = "RPC group mixes statically and dynamically initialized members which is not supported."
"""torch's sentence."""
SMALL: Final = 256
"""Members up to which everyone who joins is told the exact state at once."""

_Need = tuple[bool, bool]


class Groups:
    """Static members, expected names, and those who wait."""

    def __init__(self, heartbeat_interval: float) -> None:
        self._heartbeat_interval = heartbeat_interval
        self._expected: tuple[str, ...] = ()
        self._expected_set: frozenset[str] = frozenset()
        self._missing: dict[str, None] = {}
        self._living: dict[str, Record] = {}
        self._static: dict[str, Record] = {}
        self._waiting: dict[_Need, dict[str, Record]] = {}
        self._told: dict[_Need, GroupProgress] = {}
        self.failure: ZrpcError | None = None
        """Why the strict static group does not form; None when nothing is wrong."""
        self.failure_told: set[int] = set()
        """Who knows it: the nonces of their HELLOs."""

    def __repr__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        return f"<Groups living={len(self._living)} static={len(self._static)} waiting={waiting}>"

    @property
    def has_waiting(self) -> bool:
        return any(self._waiting.values())

    @property
    def world_size(self) -> int:
        """The size of the static group, 0 when there is none."""
        for record in self._static.values():
            assert record.hello is not None
            return record.hello.world_size
        return 0

    def expect(self, names: Iterable[str]) -> None:
        """These names, and no others, are waited for from now on."""
        self._expected = tuple(dict.fromkeys(names))
        self._expected_set = frozenset(self._expected)
        self._missing = {name: None for name in self._expected if name not in self._living}
        self._told.clear()

    def refusal(self, hello: Hello) -> JoinRefused | None:
        """Why this group does not take `hello`; None when it does."""
        size = self.world_size
        if hello.strict and (len(self._living) > len(self._static) if hello.world_size else bool(self._static)):
            return JoinRefused(MIXED)
        if not hello.world_size:
            return None
        if size and hello.world_size != size:
            return JoinRefused(
                f"worker {hello.name!r} asks for a group of {hello.world_size}, the group here has world_size {size}."
            )
        if size and len(self._static) >= size:
            return JoinRefused(f"the group of {size} is complete: {hello.name!r} would be one more.")
        if hello.id >= hello.world_size:
            return JoinRefused(f"rank {hello.id} of {hello.name!r} is not below world_size {hello.world_size}.")
        return None

    def fails_with(self, hello: Hello) -> bool:
        """Whether the refusal of this HELLO is the end of the group: it is strict, static, and was one of those that the
        group still waits for."""
        return bool(hello.strict and hello.world_size) and len(self._static) < (self.world_size or hello.world_size)

    def waiting_static(self) -> list[Record]:
        """Those who wait for the static group."""
        return [record for (static, _), waiting in self._waiting.items() if static for record in waiting.values()]

    def add(self, record: Record, waits: bool) -> None:
        """A member is living; `waits`: it is not up yet."""
        hello = record.hello
        assert hello is not None
        self._living[record.name] = record
        self._missing.pop(record.name, None)
        if hello.world_size:
            self._static[record.name] = record
        if waits:
            self._waiting.setdefault((hello.world_size > 0, hello.wait), {})[record.name] = record
        self._forget_progress()

    def remove(self, record: Record) -> None:
        """A member is gone."""
        self._living.pop(record.name, None)
        self._static.pop(record.name, None)
        for waiting in self._waiting.values():
            waiting.pop(record.name, None)
        if record.name in self._expected_set:
            self._missing[record.name] = None
        self._forget_progress()

    def _forget_progress(self) -> None:
        # Counting a large group anew for each of its members, as they come, would cost the square of its size; they are
        # told the count of the last round, and the next round within a second.
        if len(self._living) <= SMALL:
            self._told.clear()

    def take_ready(self) -> list[Record]:
        """Those who wait for nothing any more; they are taken off the list."""
        ready: list[Record] = []
        static_complete = len(self._static) >= self.world_size
        for (needs_static, needs_expected), waiting in self._waiting.items():
            if waiting and (static_complete or not needs_static) and not (needs_expected and self._missing):
                ready += waiting.values()
                waiting.clear()
        return ready

    def progress(self, record: Record) -> GroupProgress:
        """What one who waits is told; the same object as long as nothing changes."""
        hello = record.hello
        assert hello is not None
        need = (hello.world_size > 0, hello.wait)
        told = self._told.get(need)
        if told is None:
            told = self._told[need] = self._make_progress(*need)
        return told

    def waiting(self) -> list[tuple[GroupProgress, list[Record]]]:
        """What to tell to whom, now."""
        self._told.clear()
        return [
            (self.progress(next(iter(waiting.values()))), list(waiting.values()))
            for waiting in self._waiting.values()
            if waiting
        ]

    def _make_progress(self, static: bool, expected: bool) -> GroupProgress:
        missing: dict[str, None] = {}
        short = total = 0
        if static:
            short = max(0, self.world_size - len(self._static))
            total = self.world_size
            missing.update(dict.fromkeys(self._missing_ranks(short)))
        if expected:
            absent = sum(1 for name in self._missing if name not in missing)
            short = max(short, absent) if static else absent
            total = max(total, len(self._expected))
            missing.update(self._missing)
        present = self._static if static else [name for name in self._expected if name in self._living] or self._living
        return GroupProgress(
            tuple(islice(present, MAX_TOLD)),
            tuple(islice(missing, MAX_TOLD)),
            min(short, 65_535),
            total,
            self._heartbeat_interval,
        )

    def _missing_ranks(self, short: int) -> list[str]:
        """The ranks that are not there, when every static member that is has said its own."""
        ranks = {record.id for record in self._static.values()}
        said = all(record.hello is not None and record.hello.id == record.id for record in self._static.values())
        if not short or not said:
            return []
        absent = (rank for rank in range(self.world_size) if rank not in ranks)
        return [f"rank {rank}" for rank in islice(absent, MAX_TOLD)]
