"""A worker that serves at full speed for a long time: do its memory and its descriptors stay flat?

    python -m benchmarks.soak --minutes 20 [--callers 2]

Callers in processes of their own call one worker with all that there is: TorchScript and Python functions, one after the
other and many at a time, tensors of up to 4 MB, references, backward passes. The worker tells every few seconds what it
holds. The verdict is from the second half of the run, when it has all that it needs: the line of least squares through what
was seen must rise by less than `MOST` over that half. The exit code is 1 when it does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from benchmarks.chaos.memory import slope
from zrpc.broker.server import BrokerServer
from zrpc.transport.curve import new_keyring, write_key_file
from zrpc.transport.router import ZmqTransport

MOST = {"resident": 0.05, "in_use": 0.03, "python_blocks": 0.01, "descriptors": 0.1}
"""The part that each may rise by over the second half. What is resident varies with what the allocator keeps of what was
freed; Python's blocks may rise by memories that are bounded."""


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.soak.roles", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    """Close its input and wait; what it still had to say."""
    said, _ = process.communicate(timeout=60)
    return said


def judge(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the second half of a run says of each kind: its mean, its rise over that half, whether it is flat."""
    late = samples[len(samples) // 2 :]
    found: dict[str, Any] = {}
    for kind, most in MOST.items():
        points = [(sample["time"], float(sample[kind])) for sample in late]
        mean = sum(value for _, value in points) / max(1, len(points))
        rise = slope(points) * (points[-1][0] - points[0][0]) if points else 0.0
        found[kind] = {"mean": round(mean), "rise": round(rise), "is_flat": bool(points) and rise <= most * mean}
    return found


def watch(output: IO[str], samples: list[dict[str, Any]], began: float) -> None:
    """Collect what the worker tells."""
    for line in output:
        sample = json.loads(line)
        sample["time"] = time.monotonic() - began
        samples.append(sample)
        if len(samples) % 6 == 1:
            sizes = ", ".join(
                f"{kind} {sample[kind] / 2**20:.0f}" for kind in ("resident", "shared", "in_use", "kept_free")
            )
            more = f"blocks {sample['python_blocks']:,}, descriptors {sample['descriptors']}"
            print(f"{sample['time']:6.0f} s: {sample['served']:,} calls; MiB: {sizes}; {more}", flush=True)


def run(minutes: float, callers: int, every: float) -> int:
    """The whole run, and its verdict."""
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="zrpc-soak-") as folder:
        key = str(Path(folder) / "key")
        keyring = new_keyring("soak")
        write_key_file(keyring, key)
        transport = ZmqTransport(keyring, "broker")
        broker = BrokerServer(transport, "tcp://127.0.0.1:0", cluster="soak")
        broker.start()
        processes = [start("server", broker.address, key, str(every))]
        try:
            assert processes[0].stdout is not None
            watcher = threading.Thread(target=watch, args=(processes[0].stdout, samples, time.monotonic()), daemon=True)
            watcher.start()
            processes += [start("caller", broker.address, key, f"caller-{index}") for index in range(callers)]
            for process in processes[1:]:
                assert process.stdout is not None
                process.stdout.readline()  # it is up
            time.sleep(minutes * 60)
            made = sum(json.loads(end(process))["made"] for process in processes[1:])
            assert processes[0].stdin is not None
            processes[0].stdin.close()
            processes[0].wait(60)
            watcher.join(10)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            broker.stop()
            transport.close()
    verdict = judge(samples)
    is_flat = all(kind["is_flat"] for kind in verdict.values())
    served = samples[-1]["served"] if samples else 0
    summary = {"minutes": minutes, "made": made, "served": served, "looks": len(samples), **verdict, "flat": is_flat}
    print(json.dumps(summary, indent=2))
    return int(not is_flat)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    given = parser.parse_args()
    return run(given.minutes, given.callers, given.every)


if __name__ == "__main__":
    raise SystemExit(main())
