"""The benchmarks work: each system runs each workload for a moment. No time is judged."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import backpressure, brokerload, footprint, harness, many, picture, report, run, systems, workloads
from benchmarks.casts import NETWORK, Settings
from benchmarks.scale import TINY
from benchmarks.workloads import bulk
from benchmarks.workloads.base import Metric, processor_seconds, quantile

SYSTEMS = [name for name in systems.NAMES if systems.is_available(name)]
DEADLINE = 90.0
LATENCY, RATE = Metric("latency", "a latency", "us"), Metric("rate", "a rate", "1/s", is_rate=True)


@pytest.mark.integration
@pytest.mark.parametrize("name", SYSTEMS)
def test_workloads(name: str) -> None:
    wanted = [workload for workload in workloads.STAGED if systems.measures(name, workload)]
    measured = harness.measure(name, wanted, TINY, DEADLINE)
    kinds = systems.find_system(name).kinds
    expected = {metric.key for workload in wanted for metric in workloads.METRICS[workload]}
    expected -= {f"echo {size}" for size in bulk.TARGETS if size not in TINY.echo_sizes}
    expected = {key for key in expected if "TorchScript" not in key or "TorchScript" in kinds}
    assert set(measured) == expected
    assert min(measured.values()) >= 0


@pytest.mark.integration
@pytest.mark.parametrize("name", [name for name in SYSTEMS if systems.measures(name, workloads.LAUNCH)])
def test_launch(name: str) -> None:
    measured = harness.measure(name, [workloads.LAUNCH], TINY, DEADLINE)
    assert set(measured) == {"launch"}
    assert all(0 < seconds < DEADLINE for seconds in measured.values())


@pytest.mark.integration
def test_a_round_ends_at_its_deadline() -> None:
    with pytest.raises(harness.RoundFailed, match=r"not done at the deadline|ended early"):
        harness.measure(systems.OURS, ["sync"], TINY, 0.001)


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


@pytest.mark.integration
def test_a_process_that_fails_says_why() -> None:
    broken = replace(TINY, echo_sizes=(-1,))
    with pytest.raises(harness.RoundFailed, match=r"the client failed:(.|\n)*negative"):
        harness.measure(systems.OURS, ["bulk"], broken, DEADLINE)


@pytest.mark.integration
@pytest.mark.parametrize("settings", [(), NETWORK])
def test_backpressure(settings: Settings) -> None:
    found = backpressure.measure(settings, "fail", 0.5)
    assert found.offered >= found.taken > 0
    assert min(*found.producer, *found.consumer) > 0


@pytest.mark.integration
def test_many_workers() -> None:
    found = many.measure(systems.OURS, 3, 2)
    assert found.calls == 12
    assert len(found.grown) == 3


@pytest.mark.integration
def test_broker_load() -> None:
    found = brokerload.measure(12, 0.5)
    assert found.lost == 0
    assert min(found.join_seconds, found.join_cpu, found.resolve_p50) > 0


@pytest.mark.integration
@pytest.mark.parametrize("what", ["hello", "rubbish"])
def test_flood(what: str) -> None:
    """In a process of its own: it keeps itself and what it starts on some cores. What it judges is times."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.flood",
        "--rounds",
        "1",
        "--seconds",
        "0.3",
        "--rate",
        "300",
        "--what",
        what,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode in (0, 1)
    round_, summary = map(json.loads, ended.stdout.splitlines())
    assert min(round_["calls"]) > 0
    assert "p99, flooded / control" in summary["ratio"]
    for side in ("worker", "broker"):
        assert summary[side]["wrong key" if what == "hello" else "no handshake"] > 0


@pytest.mark.integration
def test_footprint() -> None:
    bare, before, after = footprint.measure(systems.OURS, 3)
    assert min(bare, before, after) > 0


def test_table() -> None:
    rounds = {"zrpc": [{"latency": 1234.0, "rate": 4.0}], "other": [{"latency": 2468.0}], "side": [{"rate": 1.0}]}
    rows = report.summarize(rounds, [LATENCY, RATE], "zrpc")
    text = io.StringIO()
    report.show(Console(file=text, width=160), rows, ["other"], ["side"], "zrpc")
    lines = [line.strip("│").replace("│", " ").split() for line in text.getvalue().splitlines()]
    assert ["a", "latency", "<", "1,234", "2,468", "us", "0.50"] in lines
    assert ["a", "rate", ">", "4.00", "-", "1/s", "-"] in lines
    assert ["a", "rate", ">", "4.00", "1.00", "1/s", "4.00"] in lines
    assert ["Rounds:", "1"] in lines
    more = report.summarize({"zrpc": [*rounds["zrpc"], {"rate": 1.0}]}, [LATENCY, RATE], "zrpc")
    report.show(Console(file=text, width=160), more, [], [], "zrpc")
    assert "Rounds: 2, of some rows 1\n" in text.getvalue()


@pytest.mark.parametrize(
    ("metric", "ratios", "expected"),
    [
        (LATENCY, {"a": 0.1}, None),
        (replace(LATENCY, target=0.5), {"a": 0.1, "b": 0.4, "c": 9.0}, True),
        (replace(LATENCY, target=0.5), {"a": 0.1, "b": 0.6}, False),
        (replace(LATENCY, target=0.5), {"b": 0.1}, True),
        (replace(LATENCY, target=0.5), {}, None),
        (replace(RATE, target=4.0), {"a": 3.9, "b": 7.0}, False),
        (replace(RATE, target=4.0), {"a": 4.0, "b": 7.0}, True),
        (replace(LATENCY, limit=1.0), {}, True),
        (replace(LATENCY, limit=0.9), {"a": 0.1}, False),
    ],
)
def test_targets(metric: Metric, ratios: dict[str, float], expected: bool | None) -> None:
    """The better one of the rivals counts, and nobody else."""
    row = report.Row(metric, {"zrpc": 1.0, "a": 3.0}, {name: (ratio, ratio, ratio) for name, ratio in ratios.items()})
    assert row.is_met(["a", "b"]) is expected


def test_json() -> None:
    rounds = {"zrpc": [{"latency": 1.0}]}
    rows = report.summarize(rounds, [LATENCY], "zrpc")
    document = json.loads(report.to_json(rows, rounds, TINY, ["a failure"], ["other"]))
    assert document["rounds"] == rounds
    assert document["summary"][0]["medians"] == {"zrpc": 1.0}
    assert document["failures"] == ["a failure"]
    assert {"cores", "load", "python", "torch"} <= set(document["machine"])


def test_picture(tmp_path: Path) -> None:
    rounds = {"zrpc": [{"latency": 1.0, "rate": 4.0}], "other": [{"latency": 2.0, "rate": 1.0}]}
    rows = report.summarize(rounds, [LATENCY, replace(RATE, target=8.0)], "zrpc")
    path = tmp_path / "picture.png"
    picture.draw(json.loads(report.to_json(rows, rounds, TINY, [], ["other"])), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert (picture.gain(0.5, False), picture.gain(0.5, True)) == (2.0, 0.5)


def test_processor_time_of_processes() -> None:
    before = processor_seconds([os.getpid()])
    for _ in range(10_000):
        pass
    assert processor_seconds([os.getpid()]) > before >= 0


def test_systems_take_turns() -> None:
    order: list[tuple[str, list[str]]] = []

    def measure(name: str, chosen: Sequence[str], _scale: object) -> dict[str, float]:
        order.append((name, list(chosen)))
        if name == "b":
            raise harness.RoundFailed("no luck")
        return {"latency": float(len(order))}

    scale = replace(TINY, rounds=3, launches=1)
    rounds, failures = run.run_rounds(["a", "b"], ["sync", "launch"], scale, measure)
    assert order == [
        *(("a", ["sync", "launch"]), ("b", ["sync", "launch"])),
        *(("b", ["sync"]), ("a", ["sync"])),
        *(("a", ["sync"]), ("b", ["sync"])),
    ]
    assert rounds == {"a": [{"latency": 1.0}, {"latency": 4.0}, {"latency": 5.0}], "b": [{}, {}, {}]}
    assert failures == [f"round {number} of b: no luck" for number in (1, 2, 3)]


def test_no_round_is_begun_without_time_for_it() -> None:
    now = [0.0]

    def measure(_name: str, _chosen: Sequence[str], _scale: object) -> dict[str, float]:
        now[0] += 10.0
        return {"latency": now[0]}

    scale = replace(TINY, rounds=5, seconds=65.0)
    rounds, _ = run.run_rounds(["a", "b"], ["sync"], scale, measure, lambda: now[0])
    assert rounds == {
        "a": [{"latency": 10.0}, {"latency": 40.0}, {"latency": 50.0}],
        "b": [{"latency": 20.0}, {"latency": 30.0}, {"latency": 60.0}],
    }


def test_the_command_refuses_unknown_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run.main(["--systems", "zrpc,carrier-pigeon", "--output", str(tmp_path / "x")])
    assert "carrier-pigeon: expected some of zrpc, tensorpipe, tensorpipe-uv, pyzmq" in capsys.readouterr().err


def test_quantiles() -> None:
    ordered = [float(value) for value in range(100)]
    assert quantile(ordered, 0.5) == 50
    assert quantile(ordered, 0.99) == 99
    assert quantile([1.0], 0.99) == 1
