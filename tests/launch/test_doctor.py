from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zrpc.errors import CallTimeout
from zrpc.launch.doctor import Finding, examine, is_healthy
from zrpc.launch.tables import duration, print_findings, print_status, size
from zrpc.transport.curve import new_keyring, write_key_file

NOW = 1000.0


def member(name: str, number: int, **changes: Any) -> dict[str, Any]:
    usual = {
        "name": name,
        "id": number,
        "address": f"tcp://127.0.0.1:{5000 + number}",
        "role": "shard",
        "state": "up",
        "host": "here",
        "software": "zrpc 1",
        "uptime": 200.0,
        "statistics": {"calls_served": 1234, "memory_bytes": 200 << 20},
    }
    return {**usual, **changes}


class FakeCluster:
    """Answers as a broker and its workers would; `answers` overrides by (address, question)."""

    def __init__(self, members: list[dict[str, Any]], **status: Any) -> None:
        self._status = {"cluster": "c", "address": "tcp://127.0.0.1:1", "uptime": 5.0, "members": members, **status}
        self.answers: dict[tuple[str, str], Any] = {}

    def status(self, timeout: float = 5.0) -> dict[str, Any]:
        return self._status

    def inspect(self, member_address: str, request: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
        usual: dict[str, Any] = {
            "ping": {"wall": NOW},
            "reach": {"reach": {other["name"]: {"ms": 1.0} for other in self._status["members"]}},
        }
        answer = self.answers.get((member_address, request["what"]), usual[request["what"]])
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(f.check, f.about, f.result) for f in findings if f.result != "good"]


def look(cluster: FakeCluster, key_file: Path | None) -> list[Finding]:
    return list(examine(cluster, None if key_file is None else str(key_file), lambda: NOW))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return write_key_file(new_keyring("c"), tmp_path / "key")


def test_a_healthy_cluster(key_file: Path) -> None:
    findings = look(FakeCluster([member("a", 0), member("b", 1)]), key_file)
    assert bad(findings) == []
    assert is_healthy(findings)
    assert {f.check for f in findings} == {"broker", "key file", "versions", "address", "clock", "reach"}


def test_each_illness(key_file: Path) -> None:
    cluster = FakeCluster(
        [
            member("a", 0),
            member("b", 1, software="zrpc 2"),
            member("c", 2, address="tcp://0.0.0.0:5"),
            member("d", 3, host="there", address="tcp://10.0.0.1:5"),
            member("e", 4, host="there", address="tcp://10.0.0.1:6"),
        ],
        refusals={"unknown key": 3},
    )
    cluster.answers[("tcp://127.0.0.1:5000", "ping")] = CallTimeout("a", "ping", 10)
    cluster.answers[("tcp://127.0.0.1:5001", "ping")] = {"wall": NOW - 60}
    cluster.answers[("tcp://10.0.0.1:5", "reach")] = {"reach": {"a": {"error": "nobody listens there"}}}
    cluster.answers[("tcp://10.0.0.1:6", "reach")] = CallTimeout("e", "reach", 10)
    findings = look(cluster, key_file)
    assert bad(findings) == [
        ("broker", "tcp://127.0.0.1:1", "warning"),
        ("versions", "all workers", "bad"),
        ("address", "a", "bad"),
        ("address", "b", "bad"),
        ("address", "c", "bad"),
        ("clock", "a", "bad"),
        ("clock", "b", "warning"),
        ("reach", "d", "bad"),
        ("reach", "e", "bad"),
    ]
    assert not is_healthy(findings)
    details = {(f.check, f.about): f.detail for f in findings}
    assert details["versions", "all workers"] == "most have zrpc 1; b has zrpc 2"
    assert details["reach", "d"].startswith("a: nobody listens there; b: it does not know of it")


def test_keys(tmp_path: Path, key_file: Path) -> None:
    cluster = FakeCluster([])
    key_file.chmod(0o644)
    assert bad(look(cluster, key_file)) == [("key file", str(key_file), "bad")]
    key_file.chmod(0o600)
    tmp_path.chmod(0o777)
    assert bad(look(cluster, key_file)) == [("key file", str(key_file), "bad")]
    tmp_path.chmod(0o700)
    assert bad(look(cluster, None)) == [("key file", "none", "warning")]


def test_a_group_that_waits(key_file: Path) -> None:
    assert bad(look(FakeCluster([], missing=["x"]), key_file)) == [("broker", "tcp://127.0.0.1:1", "warning")]


def test_tables() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    members = [member("b", 1, stopping=True), member("a", 0)]
    print_status(console, {**FakeCluster(members).status(), "missing": ["x"], "refusals": {"unknown key": 2}})
    print_findings(console, [Finding("reach", "a", "bad", "no way")])
    text = out.getvalue()
    assert "cluster c: broker tcp://127.0.0.1:1, up 5 s, 2 workers" in text
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert rows[0] == ["a", "0", "shard", "tcp://127.0.0.1:5000", "up", "3:20", "1,234", "200 MiB"]
    assert rows[1][4] == "stopping"
    assert rows[2] == ["reach", "a", "bad", "no way"]
    assert "waiting for x" in text
    assert "refused so far: unknown key 2" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.9, "4 s"), (200, "3:20"), (7205, "2:00:05"), (3 * 86400 + 4 * 3600, "3 d 4 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 << 29, "2.5 GiB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
