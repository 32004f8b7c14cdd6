"""One trace of a cluster of real processes: `zrpc launch --trace`, and `zrpc trace` of one that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from zrpc.telemetry.chrome import AWAY, PHASES

pytestmark = pytest.mark.integration
DEADLINE = 90.0
ORDER = [*PHASES[:2], AWAY, *PHASES[2:]]
SLACK_US = 2e-3
"""Two grains of the clocks: times in the file are floats."""

CLUSTER = """
cluster: traced
python_path: ["."]
roles:
  worker: {count: 3, name: "w{index}", import: [work], restart: never}
job: {entry: "work:main"}
"""

WORK = """
import os
import subprocess
import sys

import torch

import zrpc
from zrpc.tracing import block


def nested(to):
    return zrpc.rpc_sync(to, torch.mul, args=(torch.ones(2), 3))


def vanish():
    os._exit(0)


def main(seconds=0.0):
    if seconds:
        tool = subprocess.Popen(
            [sys.executable, "-m", "zrpc.cli.main", "trace", "tool.json", "--seconds", str(seconds),
             "--broker", os.environ["ZRPC_BROKER"], "--key-file", os.environ["ZRPC_KEY_FILE"]]
        )
        while tool.poll() is None:
            zrpc.rpc_sync("w0", nested, args=("w1",))
        return tool.returncode
    for _ in range(20):
        zrpc.rpc_sync("w0", torch.add, args=(torch.ones(2), 1))
    zrpc.rpc_sync("w0", nested, args=("w1",))
    torch.futures.wait_all([zrpc.rpc_async(f"w{i % 2}", torch.neg, args=(torch.ones(2),)) for i in range(30)])
    with block("values"):
        zrpc.remote("w1", torch.ones, args=([2],)).to_here()
    zrpc.rpc_sync("w2", torch.neg, args=(torch.ones(2),))
    try:
        zrpc.rpc_sync("w2", vanish)
    except zrpc.errors.WorkerLost:
        pass
"""


def run(tmp_path: Path, *arguments: str) -> str:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(
        [sys.executable, "-m", "zrpc.cli.main", "launch", "cluster.yaml", *arguments],
        cwd=tmp_path,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_nesting(events: list[dict[str, Any]]) -> None:
    """What is drawn on a thread nests, and what is in an asynchronous event too."""
    until: dict[Any, list[float]] = defaultdict(list)
    slices = [event for event in events if event["ph"] == "X"]
    assert slices
    for event in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        stack = until[event["pid"], event["tid"]]
        while stack and stack[-1] <= event["ts"] + SLACK_US:
            stack.pop()
        assert not stack or event["ts"] + event["dur"] <= stack[-1] + SLACK_US, event
        stack.append(event["ts"] + event["dur"])


def check_parts(events: list[dict[str, Any]]) -> None:
    """The parts of each call follow one another and fill it."""
    calls = defaultdict(list)
    for event in events:
        if event.get("cat") == "call" and event["ph"] in "be":
            calls[event["id"]].append(event)
    assert calls
    for pieces in calls.values():
        starts = {event["name"]: event["ts"] for event in pieces if event["ph"] == "b"}
        ends = {event["name"]: event["ts"] for event in pieces if event["ph"] == "e"}
        assert starts.keys() == ends.keys()
        [whole] = [name for name in starts if " -> " in name]
        at = starts.pop(whole)
        for name in sorted(starts, key=ORDER.index):
            assert starts[name] == pytest.approx(at, abs=SLACK_US)
            at = ends[name]
        assert at == pytest.approx(ends[whole], abs=SLACK_US)


def test_a_launched_job_is_traced(tmp_path: Path) -> None:
    output = run(tmp_path, "--trace", "out.json")
    assert f"the trace is in {tmp_path / 'out.json'}" in output
    drawn = json.loads((tmp_path / "out.json").read_text())
    events, about = drawn["traceEvents"], drawn["otherData"]

    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert sorted(names.values()) == ["job", "w0", "w1"]
    assert list(about["left out"]) == ["w2"]  # it ended by itself
    for worker in about["workers"].values():
        assert worker["give or take (us)"] is not None
        assert worker["spans dropped"] == 0

    calls = [e for e in events if e["ph"] == "b" and e["cat"] == "call" and "args" in e]
    titles = [call["name"] for call in calls]
    assert titles.count("aten::add -> w0") == 20
    assert titles.count("aten::neg -> w0") == 15
    assert {"work:nested -> w0", "aten::mul -> w1"} <= set(titles)
    for call in calls:
        if call["name"] == "aten::add -> w0":
            assert all(call["args"][f"{phase} (us)"] >= 0 for phase in PHASES)
            assert call["args"]["on the wire (us)"] > 0

    arrows = {e["id"]: e for e in events if e["ph"] == "s"}
    heads = {e["id"]: e for e in events if e["ph"] == "f"}
    assert arrows.keys() == heads.keys()
    assert all(arrows[number]["ts"] <= heads[number]["ts"] for number in arrows)
    between = {(names[arrows[number]["pid"]], names[heads[number]["pid"]]) for number in arrows}
    assert {("job", "w0"), ("job", "w1"), ("w0", "w1")} <= between

    assert [e["name"] for e in events if e["ph"] == "X" and e["cat"] == "block"] == ["values"]
    happened = {e["name"] for e in events if e["ph"] == "i" and names[e["pid"]] == "w1"}
    assert {"RRef created"} <= happened <= {"RRef created", "RRef deleted"}
    check_nesting(events)
    check_parts(events)


def test_a_running_cluster_is_traced_by_the_command(tmp_path: Path) -> None:
    output = run(tmp_path, "--set", "job.args.seconds=1.0")
    assert "tool.json has the calls of job, w0, w1, w2" in output
    drawn = json.loads((tmp_path / "tool.json").read_text())
    titles = {e["name"] for e in drawn["traceEvents"] if e["ph"] == "b" and e["cat"] == "call"}
    assert {"work:nested -> w0", "aten::mul -> w1"} <= titles
    assert drawn["otherData"]["taken by"] == "zrpc trace"
    check_nesting(drawn["traceEvents"])
    check_parts(drawn["traceEvents"])


def test_a_cluster_without_a_job_is_not_launched_with_a_trace(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("roles: {w: {count: 1}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "zrpc.cli.main", "launch", "cluster.yaml", "--trace", "out.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode != 0
    assert "use `zrpc trace FILE`" in done.stderr
