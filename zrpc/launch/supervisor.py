"""When the processes of a cluster are started, restarted and stopped: a state machine without clock and processes.

One rule: `handle(event, now)` and `tick(now)` return effects in the order in which they are to be done, and do nothing.

A worker:    waiting -> starting -> up -> stopping -> ended          (waiting: until its first start, or for a restart)
                                    up -> retiring -> forgotten      (its role is to have fewer workers)
The cluster: forming -> running -> ending the job -> ending the workers -> finished

The job's process is started with the workers, because importing takes long, and let go when all workers are up. What
ends first decides: the job (0, or its failure), a worker that failed for good, a request to stop, or an interrupt.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from zrpc.clock import earliest
from zrpc.errors import ConfigError, InvalidTransition
from zrpc.launch.events import (
    Begin,
    Blame,
    Charge,
    Effect,
    Event,
    Exited,
    Finish,
    Interrupted,
    Joined,
    Kill,
    Note,
    Release,
    Remark,
    ScaleAsked,
    Spawn,
    SpawnFailed,
    Terminate,
)
from zrpc.launch.exits import INTERRUPTED, JOB_FAILED, SUCCESS, WORKER_FAILED, describe_exit

INTERRUPT_JOB_GRACE = 1.5
INTERRUPT_WORKER_GRACE = 2.0
"""After an interrupt everything is gone within 5 s: both graces, and the rest for killing and for the broker."""
STEADY_SECONDS = 60.0
"""A worker that was up for so long starts to count its restarts from 0 again."""
NAG_SECONDS = 5.0
"""How often those that are not up yet are named while the cluster forms."""


@dataclass
class _Life:
    """What is known of one process."""

    charge: Charge
    state: str = "waiting"
    deadline: float | None = None
    restarts: int = 0
    """Failures in a row; what the policy counts."""
    starts: int = 0
    up_since: float = 0.0
    killed_why: str = ""

    @property
    def runs(self) -> bool:
        return self.state in ("starting", "up", "stopping", "retiring")


@dataclass(frozen=True)
class SupervisorStatistics:
    """Where a supervisor stands."""

    phase: str
    states: dict[str, str]
    restarts: dict[str, int] = field(default_factory=dict)


class Supervisor:
    """Watches over some workers and at most one job. `recruit(role, index)` describes one more worker of a role, and
    raises `ConfigError` when there cannot be one; None: no role can grow."""

    def __init__(self, charges: Sequence[Charge], recruit: Callable[[str, int], Charge] | None = None) -> None:
        self._recruit = recruit
        self._lives = {charge.name: _Life(charge) for charge in charges}
        self._workers = [life for life in self._lives.values() if not life.charge.is_job]
        self._job = next((life for life in self._lives.values() if life.charge.is_job), None)
        self._phase = "new"
        self._code = SUCCESS
        self._interrupts = 0
        self._begun = 0.0
        self._nag_at: float | None = None

    def __repr__(self) -> str:
        states = " ".join(f"{name}={life.state}" for name, life in self._lives.items())
        return f"<Supervisor {self._phase} {states}>"

    def statistics(self) -> SupervisorStatistics:
        """The phase, and the state of every process."""
        lives = self._lives.items()
        return SupervisorStatistics(
            self._phase, {n: life.state for n, life in lives}, {n: life.restarts for n, life in lives if life.restarts}
        )

    @property
    def is_finished(self) -> bool:
        return self._phase == "finished"

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return earliest(self._nag_at, *(life.deadline for life in self._lives.values()))

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event. Raises `InvalidTransition` for one that cannot come in this phase."""
        if isinstance(event, Begin):
            return self._begin(now)
        if self._phase == "new":
            raise InvalidTransition(type(event).__name__, "supervisor", self._phase)
        if self._phase == "finished":
            return []
        if isinstance(event, Joined):
            return self._joined(self._lives.get(event.name), now)
        if isinstance(event, Exited):
            return self._exited(self._lives[event.name], event.code, now)
        if isinstance(event, SpawnFailed):
            life = self._lives[event.name]
            life.state, life.deadline = "ended", None
            return self._fail(life, event.why, WORKER_FAILED, now) if not self._is_ending else self._advance(now)
        if isinstance(event, Remark):
            return [Note(event.text)]
        if isinstance(event, ScaleAsked):
            return self._scale(event, now)
        if isinstance(event, Interrupted):
            return self._interrupted(event.signum, now)
        return [Note(f"stopping: {event.why}"), *self._end(SUCCESS if self._job is None else JOB_FAILED, now)]

    def tick(self, now: float) -> list[Effect]:
        """Do what has come due."""
        effects: list[Effect] = []
        for life in list(self._lives.values()):
            if life.deadline is not None and life.deadline <= now:
                effects += self._overdue(life, now)
        if self._nag_at is not None and self._nag_at <= now:
            self._nag_at = now + NAG_SECONDS
            missing = [life.charge.name for life in self._workers if life.state != "up"]
            effects.append(Note(f"waiting for {_listed(missing)}"))
        return effects

    # ------------------------------------------------------------------------------------- beginning

    def _begin(self, now: float) -> list[Effect]:
        if self._phase != "new":
            raise InvalidTransition("Begin", "supervisor", self._phase)
        self._phase = "forming"
        self._begun = now
        self._nag_at = now + NAG_SECONDS
        effects: list[Effect] = []
        for life in self._lives.values():
            effects += self._spawn(life, now)
        return effects + self._try_to_run(now)

    def _spawn(self, life: _Life, now: float) -> list[Effect]:
        life.state = "starting"
        life.killed_why = ""
        life.deadline = None if life.charge.is_job else now + life.charge.start_timeout
        life.starts += 1
        effects: list[Effect] = [Spawn(life.charge.name, life.starts - 1)]
        if life is self._job and self._phase == "running":
            effects += self._release(life, now)
        return effects

    def _release(self, job: _Life, now: float) -> list[Effect]:
        if job.charge.timeout:
            job.deadline = now + job.charge.timeout
        return [Release(job.charge.name)]

    def _joined(self, life: _Life | None, now: float) -> list[Effect]:
        if life is None or life.state != "starting":
            return []  # somebody started by hand, or an old life of a name that waits for its restart
        life.state, life.up_since = "up", now
        if not life.charge.is_job:
            life.deadline = None
        return self._try_to_run(now)

    def _try_to_run(self, now: float) -> list[Effect]:
        if self._phase != "forming" or any(life.state != "up" for life in self._workers):
            return []
        self._phase = "running"
        self._nag_at = None
        count = len(self._workers)
        effects: list[Effect] = []
        if count:
            effects.append(Note(f"{count} worker{'s are' if count != 1 else ' is'} up after {now - self._begun:.1f} s"))
        if self._job is not None and self._job.runs:
            effects += self._release(self._job, now)
        return effects

    # ------------------------------------------------------------------------------------ when one ends

    def _exited(self, life: _Life, code: int, now: float) -> list[Effect]:
        was, life.state, life.deadline = life.state, "ended", None
        if self._is_ending:
            return self._advance(now)
        if was == "retiring":
            return self._forget(life, code)
        if life is self._job:
            if code == 0 and not life.killed_why:
                return self._end(SUCCESS, now)
            if life.killed_why:
                return self._fail(life, life.killed_why, JOB_FAILED, now)
            return self._failed(life, describe_exit(code), was, JOB_FAILED, now)
        why = life.killed_why
        if not why and code == 0 and was == "starting":
            why = "ended before it had joined"
        if not why and code == 0:
            if life.charge.restart.on_success:
                life.state, life.deadline = "waiting", now + life.charge.restart.backoff
                return [Note(f"{life.charge.name} has finished, and is started again")]
            return [Note(f"{life.charge.name} has finished"), *self._end_if_nobody_is_left(now)]
        return self._failed(life, why or describe_exit(code), was, WORKER_FAILED, now)

    def _failed(self, life: _Life, why: str, was: str, code: int, now: float) -> list[Effect]:
        policy = life.charge.restart
        if was == "up" and now - life.up_since >= STEADY_SECONDS:
            life.restarts = 0
        if not policy.on_failure:
            return self._fail(life, why, code, now)
        if life.restarts >= policy.max_restarts:
            return self._fail(life, f"{why}, after {life.restarts} restarts", code, now)
        delay = policy.delay(life.restarts)
        life.restarts += 1
        life.state, life.deadline = "waiting", now + delay
        count = f"restart {life.restarts} of {policy.max_restarts}"
        return [Blame(life.charge.name, why), Note(f"{life.charge.name}: {count} in {delay:g} s")]

    def _end_if_nobody_is_left(self, now: float) -> list[Effect]:
        if self._job is None and self._workers and all(life.state == "ended" for life in self._workers):
            return self._end(SUCCESS, now)
        return []

    def _fail(self, life: _Life, why: str, code: int, now: float) -> list[Effect]:
        return [Blame(life.charge.name, why), *self._end(code, now)]

    # --------------------------------------------------------------------------------- more, and fewer

    def _scale(self, event: ScaleAsked, now: float) -> list[Effect]:
        """Start workers of a role, or let go of some, until it has `event.count`."""
        role, count = event.role, event.count
        if self._is_ending or self._recruit is None:
            return [Note(f"{count} workers of role {role} were asked for, which cannot be now")]
        mine = [life for life in self._workers if life.charge.role == role and life.state not in ("ended", "retiring")]
        effects: list[Effect] = [Note(f"role {role}: {count} workers are wanted, there are {len(mine)}")]
        try:
            while len(mine) < count:
                mine.append(self._enlist(role))
                effects += self._spawn(mine[-1], now)
        except ConfigError as error:
            return [*effects, Note(f"role {role} cannot have more: {error}")]
        mine.sort(key=lambda life: life.charge.index)
        for life in mine[count:]:
            effects += self._retire(life, now)
        return effects + self._try_to_run(now)

    def _enlist(self, role: str) -> _Life:
        assert self._recruit is not None
        taken = {life.charge.index for life in self._workers if life.charge.role == role and life.state != "ended"}
        charge = self._recruit(role, next(index for index in itertools.count() if index not in taken))
        before = self._lives.get(charge.name)
        if before is not None and before.state != "ended":
            raise ConfigError(f"role {role}", [f"its next worker would be named {charge.name}, and there is one"])
        self._workers = [life for life in self._workers if life is not before]
        life = self._lives[charge.name] = _Life(charge)
        self._workers.append(life)
        return life

    def _retire(self, life: _Life, now: float) -> list[Effect]:
        if not life.runs:
            self._drop(life)
            return []
        life.state, life.deadline = "retiring", now + life.charge.stop_timeout
        return [Terminate(life.charge.name)]

    def _forget(self, life: _Life, code: int) -> list[Effect]:
        self._drop(life)
        return [Note(f"{life.charge.name} has left" + ("" if code == 0 else f": it {describe_exit(code)}"))]

    def _drop(self, life: _Life) -> None:
        self._workers = [other for other in self._workers if other is not life]
        del self._lives[life.charge.name]

    # ------------------------------------------------------------------------------------------ timers

    def _overdue(self, life: _Life, now: float) -> list[Effect]:
        life.deadline = None
        name = life.charge.name
        if life.state == "waiting":
            return self._spawn(life, now)
        if life.state in ("stopping", "retiring"):
            return [Note(f"{name} did not stop in time and is killed"), Kill(name)]
        if life is self._job:
            life.killed_why = f"ran longer than its timeout of {life.charge.timeout:g} s"
            life.deadline = now + life.charge.stop_timeout
            life.state = "stopping"
            return [Terminate(name)]
        life.killed_why = f"did not join within {life.charge.start_timeout:g} s"
        return [Kill(name)]

    # ------------------------------------------------------------------------------------------ ending

    @property
    def _is_ending(self) -> bool:
        return self._phase in ("ending the job", "ending the workers")

    def _interrupted(self, signum: int, now: float) -> list[Effect]:
        self._interrupts += 1
        self._code = INTERRUPTED + signum
        if self._interrupts > 1:
            running = [life for life in self._lives.values() if life.runs]
            for life in running:
                life.state, life.deadline = "stopping", None
            self._phase = "ending the workers"
            kills: list[Effect] = [Kill(life.charge.name) for life in running]
            return [Note("interrupted again: killing"), *kills, *self._advance(now)]
        note = Note(f"stopping: {signal.Signals(signum).name}; once more to kill")
        if self._is_ending:
            for life in self._lives.values():
                if life.state == "stopping" and life.deadline is not None:
                    life.deadline = min(life.deadline, now + self._grace(life))
            return [note]
        return [note, *self._end(self._code, now)]

    def _grace(self, life: _Life) -> float:
        if not self._interrupts:
            return life.charge.stop_timeout
        return min(life.charge.stop_timeout, INTERRUPT_JOB_GRACE if life is self._job else INTERRUPT_WORKER_GRACE)

    def _end(self, code: int, now: float) -> list[Effect]:
        if self._is_ending:
            return []
        self._phase = "ending the job"
        self._code = code
        self._nag_at = None
        for life in self._lives.values():
            if life.state == "waiting":
                life.state = "ended"
            if life.state == "ended":
                life.deadline = None
        effects = self._stop([] if self._job is None else [self._job], now)
        return effects + self._advance(now)

    def _stop(self, lives: Iterable[_Life], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for life in lives:
            if life.runs:
                life.state, life.deadline = "stopping", now + self._grace(life)
                effects.append(Terminate(life.charge.name))
        return effects

    def _advance(self, now: float) -> list[Effect]:
        """Go on to the workers when the job has ended, and finish when they have."""
        effects: list[Effect] = []
        if self._phase == "ending the job" and (self._job is None or not self._job.runs):
            self._phase = "ending the workers"
            effects += self._stop(self._workers, now)
        if self._phase == "ending the workers" and not any(life.runs for life in self._lives.values()):
            self._phase = "finished"
            effects.append(Finish(self._code))
        return effects


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
