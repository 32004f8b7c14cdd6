from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from zrpc.errors import InvalidTransition
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
    RestartPolicy,
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
JOB = Charge("job", is_job=True, stop_timeout=4)
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
            (3, None, [Spawn("a")]),
            (4, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (5, None, []),
            (6, None, [Spawn("a")]),
            (7, Joined("a"), []),
            (8, Exited("a", 3), [Blame("a", "ended with exit code 3, after 2 restarts"), Finish(3)]),
        ],
    ),
    "restarts are forgotten after a steady time": (
        [R],
        [
            (0, Begin(), [Spawn("a")]),
            (1, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (2, None, [Spawn("a")]),
            (3, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (5, None, [Spawn("a")]),
            (6, Joined("a"), []),
            (66, Exited("a", 3), [Blame("a", "ended with exit code 3")]),
            (67, None, [Spawn("a")]),
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
