"""The job of a cluster: joins when all workers are up, runs its function, and leaves.

    python -m zrpc.workers.job --entry MODULE:FUNCTION [--args JSON]

What the function returns is the exit code: None or 0 for success. The environment says who it is and where the broker
is, as for `zrpc.workers.serve`; started by hand, it does not wait for anybody.
"""

from __future__ import annotations

import argparse
import os

import zrpc
from zrpc.launch.entries import load_entry, parse_arguments, run_program, wait_at_gate
from zrpc.lifecycle import run_main
from zrpc.tracing import trace_if_told

GATE_TIMEOUT = 24 * 3600.0
"""The launcher gives up far earlier, by the workers' start_timeout; this only bounds the wait."""


def main() -> int:
    """Run the job; its exit code."""
    parser = argparse.ArgumentParser(prog="zrpc.workers.job", description="Join the cluster and run a job.")
    parser.add_argument("--entry", required=True, help="module:function, the job")
    parser.add_argument("--args", default="{}", help="the entry's arguments, a JSON object")
    given = parser.parse_args()
    entry = load_entry(given.entry)
    arguments = parse_arguments(given.args)
    wait_at_gate(os.environ, GATE_TIMEOUT)
    zrpc.init_rpc()
    failed = True
    try:
        with trace_if_told(os.environ):
            result = run_main(entry, arguments)
        failed = bool(result)
    finally:
        zrpc.shutdown(graceful=not failed)
    return int(result or 0)


if __name__ == "__main__":
    run_program(main)
