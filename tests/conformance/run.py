"""Runs PyTorch's own RPC tests against this checkout, with a suite that is not part of the project.

    python tests/conformance/run.py                     all of its tests, one at a time
    python tests/conformance/run.py --sample 8          every eighth, as continuous integration does
    python tests/conformance/run.py --select 'group:rref*'    whatever else the suite's own runner takes

`CONFORMANCE_DIR` is the suite's folder, the one with `run_conformance.py`. Without it nothing is run, and that is said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNER = "run_conformance.py"


def find_suite(environ: Mapping[str, str]) -> Path | None:
    """The suite's folder, None if it is not there."""
    folder = environ.get("CONFORMANCE_DIR", "")
    path = Path(folder) if folder else ROOT.parent / "shared" / "conformance"
    return path if (path / RUNNER).is_file() else None


def sample(suite: Path, every: int, selection: Sequence[str]) -> list[str]:
    """Every so manieth test of the selection, in the suite's order: the same ones each time."""
    listed = subprocess.run(
        [sys.executable, str(suite / RUNNER), "--list", *selection], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split("\t")[0] for line in listed.splitlines() if "\t" in line]
    return [argument for name in names[::every] for argument in ("--select", name)]


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run; returns the runner's exit status, 0 when there is no suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="run every Nth test only")
    own, others = parser.parse_known_args(arguments)
    suite = find_suite(environ)
    if suite is None:
        print("There is no conformance suite here: set CONFORMANCE_DIR to the folder with run_conformance.py.")
        return 0
    selected = others if own.sample == 1 else sample(suite, own.sample, others)
    with tempfile.TemporaryDirectory(prefix="zrpc-conformance-") as logs:
        command = [sys.executable, str(suite / RUNNER), "--candidate", "zrpc", "--candidate-path", str(ROOT)]
        return subprocess.run([*command, "--workdir", logs, "--timeout", "60", *selected], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
