from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

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
    RestartPolicy,
    ScaleAsked,
    Spawn,
    SpawnFailed,
    StopAsked,
    Terminate,
)
from zrpc.launch.supervisor import Supervisor

INT = int(signal.SIGINT)
RETRY = RestartPolicy(on_failure=True, backoff=1, max_backoff=3, max_restarts=2)
A = Charge("a", start_timeout=10, stop_timeout=5)
B = Charge("b", start_timeout=10, stop_timeout=5)
R = Charge("a", start_timeout=10, stop_timeout=5, restart=RETRY)
ALWAYS = Charge("a", start_timeout=10, stop_timeout=5, restart=RestartPolicy(True, True, 1, 3, 2))
JOB = Charge("job", is_job=True, stop_timeout=4)
AGAIN = Charge("job", is_job=True, stop_timeout=4, restart=RETRY)
SHORT_JOB = Charge("job", is_job=True, stop_timeout=4, timeout=20)

Step = tuple[float, Event | None, list[Effect]]
"""When, what happened (None: the timer), and what is to be done, notes left out."""

FORMED: list[Step] = [
    (0, Begin(), [Spawn("a"), Spawn("b"), Spawn("job")]),
    (1, Joined("a"), []),
    (2, Joined("b"), [Release("job")]),
]
HISTORIES: dict[str, tuple[Sequence[Charge], list[Step]]] = {
    "the job succeeds": (
        [A, B, JOB],
        [
            *FORMED,
            (3, Joined("job"), []),
            (9, Exited("job", 0), [Terminate("a"), Terminate("b")]),
            (9.1, Exited("b", 0), []),
            (9.2, Exited("a", 0), [Finish(0)]),
        ],
    ),
    "the job fails": (
        [A, B, JOB],
        [
            *FORMED,
            (9, Exited("job", 7), [Blame("job", "ended with exit code 7"), Terminate("a"), Terminate("b")]),
            (9.1, Exited("a", -15), []),
            (9.2, Exited("b", -15), [Finish(1)]),
        ],
    ),
    "the job fails while the cluster forms": (
        [A, JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (1, Exited("job", 1), [Blame("job", "ended with exit code 1"), Terminate("a")]),
            (1, Joined("a"), []),
            (2, Exited("a", 0), [Finish(1)]),
        ],
    ),
    "the job runs too long": (
        [A, SHORT_JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (5, Joined("a"), [Release("job")]),
            (24, None, []),
            (25, None, [Terminate("job")]),
            (29, None, [Kill("job")]),
            (29, Exited("job", -9), [Blame("job", "ran longer than its timeout of 20 s"), Terminate("a")]),
            (30, Exited("a", 0), [Finish(1)]),
        ],
    ),
    "a worker fails": (
        [A, B, JOB],
        [
            *FORMED,
            (4, Exited("a", -11), [Blame("a", "was killed by SIGSEGV"), Terminate("job")]),
            (5, Exited("job", 1), [Terminate("b")]),
            (6, Exited("b", 0), [Finish(3)]),
        ],
    ),
    "a worker ends before it has joined": (
        [A],
        [(0, Begin(), [Spawn("a")]), (1, Exited("a", 0), [Blame("a", "ended before it had joined"), Finish(3)])],
    ),
    "a worker does not join": (
        [A, JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (10, None, [Kill("a")]),
            (10, Exited("a", -9), [Blame("a", "did not join within 10 s"), Terminate("job")]),
            (11, Exited("job", -15), [Finish(3)]),
        ],
    ),
    "a worker cannot be started": (
        [A, JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (0, SpawnFailed("a", "no such file"), [Blame("a", "no such file"), Terminate("job")]),
            (1, Exited("job", -15), [Finish(3)]),
        ],
    ),
    "two workers cannot be started": (
        [A, B],
        [
            (0, Begin(), [Spawn("a"), Spawn("b")]),
            (0, SpawnFailed("a", "no such file"), [Blame("a", "no such file"), Terminate("b")]),
            (0, SpawnFailed("b", "no such file"), [Finish(3)]),
        ],
    ),
    "a worker finishes by itself, the others go on": (
        [A, B, JOB],
        [
            *FORMED,
            (4, Exited("a", 0), []),
            (5, Exited("job", 0), [Terminate("b")]),
            (6, Exited("b", 0), [Finish(0)]),
        ],
    ),
    "no job: the cluster ends when all have finished": (
        [A, B],
        [
            (0, Begin(), [Spawn("a"), Spawn("b")]),
            (1, Joined("a"), []),
            (1, Joined("b"), []),
            (4, Exited("a", 0), []),
            (5, Exited("b", 0), [Finish(0)]),
        ],
    ),
    "a job alone": ([JOB], [(0, Begin(), [Spawn("job"), Release("job")]), (1, Exited("job", 0), [Finish(0)])]),
    "restarts, then gives up": (
        [R],
        [
            (0, Begin(), [Spawn("a")]),
            (1, Joined("a"), []),
            (2, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (2.5, None, []),
            (3, None, [Spawn("a", 1)]),
            (4, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (5, None, []),
            (6, None, [Spawn("a", 2)]),
            (7, Joined("a"), []),
            (8, Exited("a", 3), [Blame("a", "ended with exit code 3, after 2 restarts"), Finish(3)]),
        ],
    ),
    "restarts are forgotten after a steady time": (
        [R],
        [
            (0, Begin(), [Spawn("a")]),
            (1, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (2, None, [Spawn("a", 1)]),
            (3, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (5, None, [Spawn("a", 2)]),
            (6, Joined("a"), []),
            (66, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (67, None, [Spawn("a", 3)]),
        ],
    ),
    "stopped while a worker waits for its restart": (
        [R, B],
        [
            (0, Begin(), [Spawn("a"), Spawn("b")]),
            (1, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (1.5, StopAsked("asked"), [Terminate("b")]),
            (3, None, []),
            (3, Exited("b", 0), [Finish(0)]),
        ],
    ),
    "a request to stop ends the job first": (
        [A, B, JOB],
        [
            *FORMED,
            (4, StopAsked("asked"), [Terminate("job")]),
            (4, StopAsked("asked"), []),
            (5, Exited("job", 0), [Terminate("a"), Terminate("b")]),
            (5, Exited("a", 0), []),
            (5, Exited("b", 0), [Finish(1)]),
        ],
    ),
    "those that do not stop are killed": (
        [A, JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (1, Joined("a"), [Release("job")]),
            (2, StopAsked("asked"), [Terminate("job")]),
            (5, None, []),
            (6, None, [Kill("job")]),
            (6, Exited("job", -9), [Terminate("a")]),
            (11, None, [Kill("a")]),
            (11, Exited("a", -9), [Finish(1)]),
        ],
    ),
    "an interrupt has short graces": (
        [A, B, JOB],
        [
            *FORMED,
            (4, Interrupted(INT), [Terminate("job")]),
            (5.5, None, [Kill("job")]),
            (5.5, Exited("job", -9), [Terminate("a"), Terminate("b")]),
            (6, Exited("a", 0), []),
            (7.5, None, [Kill("b")]),
            (7.5, Exited("b", -9), [Finish(130)]),
        ],
    ),
    "an interrupt while starting": (
        [A, B, JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("b"), Spawn("job")]),
            (0.1, Interrupted(INT), [Terminate("job")]),
            (0.2, Exited("a", -15), []),
            (0.2, Exited("job", -15), [Terminate("b")]),
            (0.2, Exited("b", -15), [Finish(130)]),
        ],
    ),
    "an interrupt while ending shortens what is left": (
        [A, JOB],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (1, Joined("a"), [Release("job")]),
            (2, Exited("job", 0), [Terminate("a")]),
            (3, Interrupted(INT), []),
            (4.9, None, []),
            (5, None, [Kill("a")]),
            (5, Exited("a", -9), [Finish(130)]),
        ],
    ),
    "two interrupts kill": (
        [A, B, JOB],
        [
            *FORMED,
            (4, Interrupted(INT), [Terminate("job")]),
            (4.1, Interrupted(INT), [Kill("a"), Kill("b"), Kill("job")]),
            (4.2, Exited("a", -9), []),
            (4.2, Exited("b", -9), []),
            (4.2, Exited("job", -9), [Finish(130)]),
            (5, Exited("job", -9), []),
        ],
    ),
    "a worker that is always to run is started again after an orderly end": (
        [ALWAYS],
        [
            (0, Begin(), [Spawn("a")]),
            (1, Joined("a"), []),
            (2, Exited("a", 0), []),
            (3, None, [Spawn("a", 1)]),
        ],
    ),
    "the job is started again, and let go at once": (
        [A, AGAIN],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (1, Joined("a"), [Release("job")]),
            (2, Exited("job", -9), [Blame("job", "was killed by SIGKILL")]),
            (3, None, [Spawn("job", 1), Release("job")]),
            (4, Exited("job", 0), [Terminate("a")]),
            (5, Exited("a", 0), [Finish(0)]),
        ],
    ),
    "the job is started again while the cluster forms, and waits as before": (
        [A, AGAIN],
        [
            (0, Begin(), [Spawn("a"), Spawn("job")]),
            (1, Exited("job", 1), [Blame("job", "ended with exit code 1")]),
            (2, None, [Spawn("job", 1)]),
            (3, Joined("a"), [Release("job")]),
        ],
    ),
    "strangers may join": ([A], [(0, Begin(), [Spawn("a")]), (1, Joined("x"), []), (1, Joined("a"), [])]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_history(name: str) -> None:
    charges, steps = HISTORIES[name]
    supervisor = Supervisor(charges)
    for at, event, expected in steps:
        done = supervisor.tick(at) if event is None else supervisor.handle(event, at)
        assert [effect for effect in done if not isinstance(effect, Note)] == expected, (at, event, supervisor)
    ended = any(isinstance(effect, Finish) for _, _, effects in steps for effect in effects)
    assert supervisor.is_finished == ended
    if ended:
        assert supervisor.next_deadline() is None


def test_those_that_are_late_are_named() -> None:
    supervisor = Supervisor([Charge(f"w{i}", start_timeout=60) for i in range(10)])
    supervisor.handle(Begin(), 0)
    supervisor.handle(Joined("w0"), 1)
    assert supervisor.next_deadline() == 5
    assert supervisor.tick(5) == [Note("waiting for w1, w2, w3, w4, w5, w6, w7, w8 and 1 more")]
    assert supervisor.next_deadline() == 10


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = RestartPolicy(on_failure=True, backoff=0.5, max_backoff=3)
    assert [policy.delay(n) for n in (0, 1, 2, 3, 1000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_events_out_of_turn_are_errors() -> None:
    supervisor = Supervisor([A])
    with pytest.raises(InvalidTransition, match="supervisor in state new cannot take Joined"):
        supervisor.handle(Joined("a"), 0)
    supervisor.handle(Begin(), 0)
    with pytest.raises(InvalidTransition, match="cannot take Begin"):
        supervisor.handle(Begin(), 0)
    assert repr(supervisor) == "<Supervisor forming a=starting>"
    assert supervisor.statistics().states == {"a": "starting"}


# ------------------------------------------------------------------------------------------------ scaling


def shard(index: int) -> Charge:
    return Charge(f"shard-{index}", start_timeout=10, stop_timeout=5, restart=RETRY, role="shard", index=index)


class Fleet:
    """A supervisor with some shards that are up, and what it has done since."""

    def __init__(self, count: int = 2) -> None:
        self.now = 0.0
        self.supervisor = Supervisor([shard(index) for index in range(count)], self.recruit)
        self.handle(Begin())
        for index in range(count):
            self.handle(Joined(f"shard-{index}"))

    def recruit(self, role: str, index: int) -> Charge:
        if role != "shard":
            raise ConfigError("roles", [f"there is no {role}"])
        return shard(index)

    def handle(self, event: Event | None) -> list[Effect]:
        self.now += 1
        done = self.supervisor.tick(self.now) if event is None else self.supervisor.handle(event, self.now)
        return [effect for effect in done if not isinstance(effect, Note)]

    def states(self) -> dict[str, str]:
        return self.supervisor.statistics().states


def test_a_role_grows_and_its_new_workers_are_watched_like_the_others() -> None:
    fleet = Fleet()
    assert fleet.handle(ScaleAsked("shard", 4)) == [Spawn("shard-2"), Spawn("shard-3")]
    fleet.handle(Joined("shard-2"))
    assert fleet.states() == {"shard-0": "up", "shard-1": "up", "shard-2": "up", "shard-3": "starting"}
    assert fleet.handle(Exited("shard-2", -9)) == [Blame("shard-2", "was killed by SIGKILL")]
    assert fleet.handle(None) == [Spawn("shard-2", 1)]


def test_a_role_shrinks_from_its_end_and_who_has_left_is_forgotten() -> None:
    fleet = Fleet(3)
    assert fleet.handle(ScaleAsked("shard", 1)) == [Terminate("shard-1"), Terminate("shard-2")]
    assert fleet.handle(Exited("shard-2", 0)) == []
    assert fleet.states() == {"shard-0": "up", "shard-1": "retiring"}
    fleet.now += 4
    assert fleet.handle(None) == [Kill("shard-1")]
    assert fleet.handle(Exited("shard-1", -9)) == []
    assert fleet.states() == {"shard-0": "up"}
    assert fleet.handle(ScaleAsked("shard", 2)) == [Spawn("shard-1")]


def test_nobody_is_started_under_a_name_whose_holder_is_still_leaving() -> None:
    fleet = Fleet(2)
    assert fleet.handle(ScaleAsked("shard", 1)) == [Terminate("shard-1")]
    assert fleet.handle(ScaleAsked("shard", 2)) == [Spawn("shard-2")]


def test_a_role_may_have_no_workers_and_the_cluster_goes_on() -> None:
    fleet = Fleet(1)
    assert fleet.handle(ScaleAsked("shard", 0)) == [Terminate("shard-0")]
    assert fleet.handle(Exited("shard-0", 0)) == []
    assert not fleet.supervisor.is_finished
    assert fleet.handle(ScaleAsked("shard", 1)) == [Spawn("shard-0")]


def test_a_worker_that_waits_for_its_restart_is_let_go_without_a_signal() -> None:
    fleet = Fleet(2)
    fleet.handle(Exited("shard-1", 1))
    assert fleet.handle(ScaleAsked("shard", 1)) == []
    assert fleet.states() == {"shard-0": "up"}


def test_what_cannot_be_scaled_is_said_and_changes_nothing() -> None:
    fleet = Fleet(1)
    (_, said) = fleet.supervisor.handle(ScaleAsked("other", 1), 9)
    assert said == Note("role other cannot have more: roles: there is no other")
    fixed = Supervisor([A])
    fixed.handle(Begin(), 0)
    (said,) = fixed.handle(ScaleAsked("a", 3), 1)
    assert said == Note("3 workers of role a were asked for, which cannot be now")


def test_a_remark_is_shown() -> None:
    fleet = Fleet(1)
    assert fleet.supervisor.handle(Remark("the broker is back"), 9) == [Note("the broker is back")]
