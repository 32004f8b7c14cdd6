"""A trace that a tool takes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from zrpc.errors import CallTimeout
from zrpc.launch.traces import GRACE, take_trace
from zrpc.telemetry.collect import TraceDesk
from zrpc.telemetry.trace import Tracer


class Cluster:
    """Two workers, of which the second does not answer."""

    def __init__(self) -> None:
        self.tracer = Tracer()
        self.desk = TraceDesk(self.tracer, lambda: None)
        self.questions: list[dict[str, Any]] = []

    def status(self, timeout: float = 5.0) -> dict[str, Any]:
        return {
            "members": [
                {"name": "a", "id": 0, "incarnation": 1, "address": "tcp://a:1"},
                {"name": "b", "id": 1, "incarnation": 2, "address": "tcp://b:1"},
            ]
        }

    def inspect(self, member_address: str, request: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
        if member_address != "tcp://a:1":
            raise CallTimeout(member_address, "inspect", timeout)
        self.questions.append(request)
        return self.desk.answer(request)


def done() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_it_names_who_is_in_it(tmp_path: Path) -> None:
    cluster = Cluster()
    assert take_trace(cluster, tmp_path / "out.json", 5.0, 1.0, done()) == ["a"]
    about = json.loads((tmp_path / "out.json").read_text())["otherData"]
    assert (about["taken by"], list(about["left out"])) == ("zrpc trace", ["b"])


def test_workers_stop_by_themselves(tmp_path: Path) -> None:
    cluster = Cluster()
    take_trace(cluster, tmp_path / "out.json", 5.0, 1.0, done())
    [start] = [question for question in cluster.questions if question["do"] == "start"]
    assert start["seconds"] == 5.0 + GRACE
    assert not cluster.tracer.is_on


def test_a_file_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    cluster = Cluster()
    with pytest.raises(FileNotFoundError):
        take_trace(cluster, tmp_path / "missing" / "out.json", 5.0, 1.0, done())
    assert cluster.questions == []
