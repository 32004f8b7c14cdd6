"""Finding the suite and choosing from it; the suite itself is stood in for by a script that tells its arguments."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import run as conformance

SUITE = """
import json, pathlib, sys
if "--list" in sys.argv:
    for number in range(10):
        print(f"Suite.test_{number}\\tgroup\\ttier")
else:
    pathlib.Path(__file__).with_name("told.json").write_text(json.dumps(sys.argv[1:]))
    sys.exit(3)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / conformance.RUNNER).write_text(SUITE)
    return tmp_path


def test_without_a_suite_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main([], {"CONFORMANCE_DIR": str(tmp_path)}) == 0
    assert "CONFORMANCE_DIR" in capsys.readouterr().out


def test_the_suites_verdict_is_ours(suite: Path) -> None:
    environ = {**os.environ, "CONFORMANCE_DIR": str(suite)}
    assert conformance.main(["--select", "group:init"], environ) == 3
    told = json.loads((suite / "told.json").read_text())
    assert told[told.index("--candidate") + 1] == "zrpc"
    assert told[-2:] == ["--select", "group:init"]


def test_a_sample_is_the_same_each_time(suite: Path) -> None:
    conformance.main(["--sample", "4"], {**os.environ, "CONFORMANCE_DIR": str(suite)})
    told = json.loads((suite / "told.json").read_text())
    assert [name for name in told if name.startswith("Suite.")] == ["Suite.test_0", "Suite.test_4", "Suite.test_8"]
