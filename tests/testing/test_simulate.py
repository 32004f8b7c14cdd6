"""Simulated histories keep the promises, a seed is a history, and broken machines are found.

A failure names its seed: `python -m zrpc.testing.simulate --seed N` shows that history.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest

from zrpc.protocol.allegiance import Allegiance
from zrpc.protocol.backward import BackwardPass
from zrpc.protocol.calls import CallTable
from zrpc.protocol.contexts import ContextTable
from zrpc.protocol.outbox import Peer
from zrpc.protocol.primary import Primary
from zrpc.protocol.registry import Registry
from zrpc.protocol.retries import Retry
from zrpc.protocol.rref_owner import Owners
from zrpc.protocol.rrefs import RRefTable
from zrpc.protocol.served import Served
from zrpc.protocol.session import Session
from zrpc.protocol.standby import Standby
from zrpc.protocol.strangers import Strangers
from zrpc.testing import simulate
from zrpc.testing.simulation.cluster import Simulation
from zrpc.testing.simulation.schedule import LARGE_EVERY, Schedule
from zrpc.testing.simulation.truth import BrokenPromise, Truth

CHUNK = 150


@pytest.mark.parametrize("chunk", range(6))
def test_histories_of_known_seeds(chunk: int) -> None:
    summary = simulate.run(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    assert summary.failures == {}
    assert summary.histories == CHUNK
    assert {"result", "timeout", "lost", "error"} <= set(summary.ends)
    assert summary.take_overs > CHUNK / 4


def test_histories_that_nobody_has_seen() -> None:
    first = secrets.randbits(40)
    assert simulate.run(range(first, first + CHUNK)).failures == {}


def test_a_seed_is_a_history() -> None:
    def history(seed: int) -> tuple[list[str], int]:
        simulation, problem = simulate.replay(seed)
        assert problem == ""
        return simulation.network.trace(), simulation.network.steps

    assert history(12) == history(12)
    assert history(12) != history(13)


def test_some_histories_are_large() -> None:
    sizes = [Schedule.of(seed).workers for seed in range(LARGE_EVERY * 20)]
    assert 45 <= max(sizes) <= 50
    assert min(sizes) == 2


# --------------------------------------------------------------------------- what is broken is found, and said


def broken(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, replacement: object) -> str:
    """What the first history says that finds a machine to be broken."""
    monkeypatch.setattr(owner, name, replacement)
    summary = simulate.run(range(4000), stop_at_first=True)  # mostly the first few dozen will do
    assert len(summary.failures) == 1, "nobody has noticed"
    return next(iter(summary.failures.values()))


def test_a_callee_that_runs_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ran on" in broken(monkeypatch, Served, "accept", lambda self, sender, message_id: True)


def test_a_caller_that_does_not_hear_of_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was lost before" in broken(monkeypatch, CallTable, "lose", lambda self, worker: [])


def test_a_caller_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    good = CallTable.expire

    def late(self: CallTable[object], now: float) -> list[object]:
        return good(self, now - 0.5)

    monkeypatch.setattr(CallTable, "next_deadline", later(CallTable.next_deadline))
    assert "after its deadline" in broken(monkeypatch, CallTable, "expire", late)


def later(good: object) -> object:
    def next_deadline(self: object) -> float | None:
        found = good(self)  # type: ignore[operator]
        return None if found is None else found + 0.5

    return next_deadline


def test_references_that_outlive_their_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not drained" in broken(monkeypatch, Owners, "delete_forks_of", lambda self, peer, out: None)


def test_an_owner_that_does_not_wait_for_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    good = RRefTable.handle_dropped

    def hasty(self: RRefTable, rref_id: object, fork_id: object, now: float) -> object:
        record = self._owners.records.get(rref_id)  # type: ignore[call-overload]
        if record is not None:
            record.forks.clear()
        return good(self, rref_id, fork_id, now)  # type: ignore[arg-type]

    assert "is released, but" in broken(monkeypatch, RRefTable, "handle_dropped", hasty)


def test_a_member_that_misses_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the broker" in broken(monkeypatch, Session, "_take_gone", lambda self, *which: [])


def test_ends_of_contexts_that_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zrpc.protocol.contexts.FIRST_RETRY", 1e6)
    assert "keeps contexts" in broken(monkeypatch, ContextTable, "timer_fired", lambda self, now: [])


def test_calls_that_spread_a_context_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    good = ContextTable.passed_on

    def careless(self: ContextTable, context_id: int, to: Peer) -> bool:
        good(self, context_id, to)
        return True

    assert "keeps contexts" in broken(monkeypatch, ContextTable, "passed_on", careless)


def test_contexts_of_lost_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextTable, "strangers_due", lambda self, lives, now: self._strange.clear() or [])
    assert "keeps contexts" in broken(monkeypatch, ContextTable, "_is_makers_life_over", lambda self, context_id: False)


def test_backward_passes_that_do_not_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_touched(self: BackwardPass, terminals: object) -> list[int]:
        found, self._touched = sorted(self._touched), set()
        return found

    assert "has had its gradient" in broken(monkeypatch, BackwardPass, "_take_complete", all_touched)


def test_a_primary_that_never_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Primary, "_is_sure", lambda self, now: True)
    assert "two brokers let newcomers in" in broken(monkeypatch, Primary, "_notice_stall", lambda self, now: None)


def test_a_standby_that_hesitates(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Standby.verdict

    def verdict(self: Standby, now: float) -> str:
        return good(self, now - 4.0)

    assert "since the broker in charge was lost" in broken(monkeypatch, Standby, "verdict", verdict)


def test_members_that_do_not_go_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has waited" in broken(monkeypatch, Allegiance, "_go_over", lambda self, address, now: [])


def test_a_broker_that_blames_members_for_its_own_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing has happened to it" in broken(monkeypatch, Registry, "excuse", lambda self, now: None)


def test_time_without_a_broker_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pending references" in broken(monkeypatch, Strangers, "postpone", lambda self, since: None)


def test_retries_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retry, "fail", lambda self, where, now: now + 0.1)
    assert "after its deadline" in broken(monkeypatch, Retry, "choose", lambda self, candidates: candidates[0])


def test_a_reference_that_a_late_call_brings_is_let_go_too() -> None:
    """A call whose caller has given up may still run, after the history: its function drops what it was given."""
    simulation = Simulation(replace(Schedule.of(1), latency=0.3, drop=0.0, repeat=0.0, deaths=False))
    simulation.run()
    giver, taker = simulation.serving()[:2]
    assert giver.references is not None
    giver.references.create_local()
    for _ in range(20):
        forks = giver.references.fork_some(taker.peer, simulation.network.now + 0.2)
        giver.begin(taker, 0.2, taker.on_call, forks=forks)
    simulation.advance(0.201)
    assert len(giver.calls) == 0
    ran = len(simulation.truth.ran)
    simulation.settle("the end", simulation.undrained)
    assert len(simulation.truth.ran) > ran


def test_promises_about_calls_and_lives() -> None:
    truth = Truth()
    truth.end_call(truth.begin_call(), "result", 5.0, 6.0)
    with pytest.raises(BrokenPromise, match="ended twice: result, then timeout"):
        truth.end_call(1, "timeout", 6.0, 6.0)
    with pytest.raises(BrokenPromise, match=r"1\.000 s after its deadline"):
        truth.end_call(2, "timeout", 7.0, 6.0)


# ---------------------------------------------------------------------------------------------- the command


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["simulate", *arguments])
    return simulate.main()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(monkeypatch, "--count", "5", "--first", "100") == 0
    assert capsys.readouterr().out.startswith("5 histories in ")
    assert run_command(monkeypatch, "--minutes", "0.001", "--fresh") == 0
    assert run_command(monkeypatch, "--seed", "3") == 0
    assert "seed 3: all promises hold" in capsys.readouterr().out


def test_the_command_tells_how_to_see_a_failure_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Simulation) -> None:
        raise BrokenPromise("planted")

    monkeypatch.setattr(Simulation, "run", fail)
    assert run_command(monkeypatch, "--count", "1") == 1
    assert "seed 0 fails: BrokenPromise: planted" in capsys.readouterr().out
    assert run_command(monkeypatch, "--seed", "0") == 1
