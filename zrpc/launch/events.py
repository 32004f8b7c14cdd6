"""The words between the supervisor and the launcher: what there is to watch, what happens, what is to be done.

One rule: plain values. Events are nouns that have happened, effects are verbs that somebody else performs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """When a process that ended is started again. Seconds; see `zrpc.config.schema.Restart`."""

    on_failure: bool = False
    on_success: bool = False
    """Also when it ended in good order, without having been told to by the launcher."""
    backoff: float = 0.5
    max_backoff: float = 30.0
    max_restarts: int = 5

    def delay(self, restarts: int) -> float:
        """Seconds before restart number `restarts` (0 for the first)."""
        return min(self.max_backoff, self.backoff * 2.0 ** min(restarts, 32))


@dataclass(frozen=True)
class Charge:
    """One process that is watched over. Times in seconds."""

    name: str
    is_job: bool = False
    start_timeout: float = 120.0
    stop_timeout: float = 5.0
    restart: RestartPolicy = RestartPolicy()
    timeout: float = 0.0
    """Of a job: how long it may run; 0 for no limit."""
    role: str = ""
    index: int = 0
    """Which one of its role it is."""


# ---------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Begin:
    """The broker stands; start everything."""


@dataclass(frozen=True)
class Joined:
    """The broker has seen the worker."""

    name: str


@dataclass(frozen=True)
class Exited:
    """The process ended; `code` as in `subprocess`, negative for a signal."""

    name: str
    code: int


@dataclass(frozen=True)
class StopAsked:
    """Somebody asked for an orderly end."""

    why: str


@dataclass(frozen=True)
class Remark:
    """Something that the user is to read."""

    text: str


@dataclass(frozen=True)
class ScaleAsked:
    """Somebody wants so many workers of a role."""

    role: str
    count: int


@dataclass(frozen=True)
class Interrupted:
    """A signal came to the launcher. A second one kills."""

    signum: int


@dataclass(frozen=True)
class SpawnFailed:
    """The process could not be started at all."""

    name: str
    why: str


Event = Begin | Joined | Exited | StopAsked | Interrupted | SpawnFailed | Remark | ScaleAsked

# --------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True)
class Spawn:
    """Start the process; it is told how often it was started before."""

    name: str
    restarts: int = 0


@dataclass(frozen=True)
class Release:
    """Let the job, which waits at its gate, begin."""

    name: str


@dataclass(frozen=True)
class Terminate:
    """Ask the process and all of its group to end."""

    name: str


@dataclass(frozen=True)
class Kill:
    """End the process and all of its group."""

    name: str


@dataclass(frozen=True)
class Note:
    """Tell the user."""

    text: str


@dataclass(frozen=True)
class Blame:
    """Tell the user who failed and why, with the last lines of its output."""

    name: str
    why: str


@dataclass(frozen=True)
class Finish:
    """Nothing is left: stop the broker and end with this exit code."""

    code: int


Effect = Spawn | Release | Terminate | Kill | Note | Blame | Finish
