"""The benchmarks work: each system runs each workload for a moment. No time is judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import harness, report, run, systems, workloads
from benchmarks.scale import TINY
from benchmarks.workloads import bulk
from benchmarks.workloads.base import Metric, quantile

SYSTEMS = [name for name in systems.NAMES if systems.is_available(name)]
DEADLINE = 90.0
LATENCY, RATE = Metric("latency", "a latency", "us"), Metric("rate", "a rate", "1/s", is_rate=True)


@pytest.mark.integration
@pytest.mark.parametrize("name", SYSTEMS)
def test_paired_workloads(name: str) -> None:
    measured = harness.measure(name, list(workloads.PAIRED), TINY, DEADLINE)
    expected = {metric.key for workload in workloads.PAIRED for metric in workloads.METRICS[workload]}
    expected -= {f"echo {size}" for size in bulk.SIZES if size not in TINY.echo_sizes}
    assert set(measured) == expected
    assert min(measured.values()) >= 0


@pytest.mark.integration
@pytest.mark.parametrize("name", SYSTEMS)
def test_startup(name: str) -> None:
    measured = harness.measure(name, [workloads.STARTUP], TINY, DEADLINE)
    assert set(measured) == (set() if name == "tensorpipe-uv" else {"startup"})
    assert all(0 < seconds < DEADLINE for seconds in measured.values())


@pytest.mark.integration
def test_a_round_ends_at_its_deadline() -> None:
    with pytest.raises(harness.RoundFailed, match="the server was not done at its deadline"):
        harness.measure(systems.OURS, ["sync"], TINY, 0.1)


def test_summary() -> None:
    rounds = {
        "zrpc": [{"latency": 10.0, "rate": 40.0}, {"latency": 30.0}, {"latency": 20.0}],
        "other": [{"latency": 20.0, "rate": 10.0}, {"latency": 10.0}, {}],
        "idle": [{"latency": 0.0}, {"latency": 0.0}, {"latency": 0.0}],
    }
    latency, rate = report.summarize(rounds, [LATENCY, RATE, Metric("absent", "nobody has it", "s")], "zrpc")
    assert latency.medians == {"zrpc": 20.0, "other": 15.0, "idle": 0.0}
    assert latency.ratios == {"other": (1.75, 0.5, 3.0)}
    assert rate.medians == {"zrpc": 40.0, "other": 10.0}
    assert rate.ratios == {"other": (4.0, 4.0, 4.0)}


def test_table() -> None:
    rounds = {"zrpc": [{"latency": 1234.0, "rate": 4.0}], "other": [{"latency": 2468.0}]}
    rows = report.summarize(rounds, [LATENCY, RATE], "zrpc")
    head, rule, latency, rate, *_ = report.render(rows, ["zrpc", "other"], "zrpc").splitlines()
    assert head.split() == ["zrpc", "/", "other", "unit", "zrpc", "other"]
    assert set(rule) == {"-"}
    assert latency.split() == ["a", "latency", "<", "0.50", "(0.50-0.50)", "us", "1,234", "2,468"]
    assert rate.split() == ["a", "rate", ">", "-", "1/s", "4.00", "-"]


def test_json() -> None:
    rounds = {"zrpc": [{"latency": 1.0}]}
    rows = report.summarize(rounds, [LATENCY], "zrpc")
    document = json.loads(report.to_json(rows, rounds, TINY, ["a failure"]))
    assert document["rounds"] == rounds
    assert document["summary"][0]["medians"] == {"zrpc": 1.0}
    assert document["failures"] == ["a failure"]
    assert {"cores", "load", "python", "torch"} <= set(document["machine"])


def test_systems_take_turns() -> None:
    order: list[tuple[str, list[str]]] = []

    def measure(name: str, chosen: Sequence[str], _scale: object) -> dict[str, float]:
        order.append((name, list(chosen)))
        if name == "b":
            raise harness.RoundFailed("no luck")
        return {"latency": float(len(order))}

    scale = replace(TINY, rounds=3, startups=1)
    rounds, failures = run.run_rounds(["a", "b"], ["sync", "startup"], scale, measure)
    assert order == [
        *(("a", ["sync", "startup"]), ("b", ["sync", "startup"])),
        *(("b", ["sync"]), ("a", ["sync"])),
        *(("a", ["sync"]), ("b", ["sync"])),
    ]
    assert rounds == {"a": [{"latency": 1.0}, {"latency": 4.0}, {"latency": 5.0}], "b": [{}, {}, {}]}
    assert failures == [f"round {number} of b: no luck" for number in (1, 2, 3)]


def test_the_command_refuses_unknown_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run.main(["--systems", "zrpc,carrier-pigeon", "--output", str(tmp_path / "x")])
    assert "carrier-pigeon: expected some of zrpc, tensorpipe, tensorpipe-uv" in capsys.readouterr().err


def test_quantiles() -> None:
    ordered = [float(value) for value in range(100)]
    assert quantile(ordered, 0.5) == 50
    assert quantile(ordered, 0.99) == 99
    assert quantile([1.0], 0.99) == 1
