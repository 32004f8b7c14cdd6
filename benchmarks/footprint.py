"""What a worker's memory is beyond torch's own: `python -m benchmarks.footprint`.

Memory is what a process has for itself (USS: its private pages). A process that has imported torch and numpy and runs one
TorchScript function is the zero; beside it a worker of each system, idle in a group of two, and again after calls.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import systems
from benchmarks.casts import PAIR
from benchmarks.systems.base import CLIENT, SERVER

BARE = "bare"
MIB = 1 << 20
DEADLINE = 120.0


def private_bytes() -> int:
    """Pages that only this process has."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


def be(role: str, meeting: Mapping[str, str], calls: int) -> None:
    """A process: says its memory, line by line, whenever it is asked."""
    from benchmarks.functions import python_add, script_add, small_tensors  # torch is imported here and not before

    args = small_tensors()
    script_add(*args)
    rpc = None
    if role != BARE:
        system = systems.find_system(meeting["system"])
        rpc = system.join(role, PAIR.ranks, dict(meeting))
    for _ in sys.stdin:
        if role == CLIENT and rpc is not None:
            for _ in range(calls):
                rpc.rpc_sync(SERVER, script_add, args=args)
                rpc.rpc_sync(SERVER, python_add, args=args)
        print(private_bytes(), flush=True)
    os._exit(0)


def start(role: str, meeting: Mapping[str, str], calls: int) -> subprocess.Popen[str]:
    words = [f"{key}={value}" for key, value in meeting.items()]
    command = [sys.executable, "-m", "benchmarks.footprint", "--role", role, "--calls", str(calls), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str]) -> float:
    """MiB that a process has for itself."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("?\n")
    process.stdin.flush()
    return int(process.stdout.readline()) / MIB


def measure(name: str, calls: int) -> tuple[float, float, float]:
    """MiB of a bare process, of a worker before it is called, and of it after the calls."""
    with tempfile.TemporaryDirectory() as folder, systems.find_system(name).meet(Path(folder), {}) as meeting:
        meeting = {**meeting, "system": name}
        processes = [start(role, meeting, calls) for role in (BARE, SERVER, CLIENT)]
        bare, server, client = processes
        try:
            zero = ask(bare)
            before = ask(server)
            ask(client)  # it calls before it answers
            return zero, before, ask(server)
        finally:
            for process in processes:
                process.kill()
                process.communicate(timeout=DEADLINE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.footprint", description="Measure what memory a worker takes.")
    parser.add_argument("--role", default="")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("meeting", nargs="*")
    given = parser.parse_args()
    if given.role:
        be(given.role, dict(word.split("=", 1) for word in given.meeting), given.calls)
    for name in (systems.OURS, systems.DEFAULT, systems.UV):
        if systems.is_available(name):
            zero, before, after = measure(name, given.calls)
            print(
                f"{name}: {zero:.1f} MiB with torch alone; a worker has {before - zero:.1f} MiB more, "
                f"{after - zero:.1f} MiB after {2 * given.calls} calls"
            )


if __name__ == "__main__":
    main()
