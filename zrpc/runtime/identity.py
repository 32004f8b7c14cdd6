"""Who this agent is, as the broker told it."""

from __future__ import annotations

from dataclasses import dataclass

from zrpc.ids import WorkerInfo


@dataclass(frozen=True, slots=True)
class Identity:
    """One life of this worker."""

    info: WorkerInfo
    incarnation: int
    life: int
    role: str = ""
    address: str = ""
