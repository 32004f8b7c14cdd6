"""The exit codes of the `zrpc` command, and what they say.

One rule: a code here means the same in every command; nothing else ends the command with another one.
"""

from __future__ import annotations

import signal

from zrpc.errors import DeadlineExceeded, LocalFault, Unavailable, VersionMismatch, ZrpcError

SUCCESS = 0
JOB_FAILED = 1
USAGE = 2
WORKER_FAILED = 3
UNREACHABLE = 4
CALL_FAILED = 5
INTERRUPTED = 128
"""Plus the signal's number, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""

MEANINGS = {
    SUCCESS: "the job succeeded; or what was asked was done",
    JOB_FAILED: "the job failed, or doctor found something (the job's own exit code is printed)",
    USAGE: "bad usage, configuration or key file; nothing was started",
    WORKER_FAILED: "a worker failed, or the cluster did not form",
    UNREACHABLE: "the cluster, its broker or a worker could not be reached",
    CALL_FAILED: "the called function raised, or the other side refused",
    INTERRUPTED + signal.SIGINT: "interrupted by Ctrl-C (143: by SIGTERM)",
}


def epilog() -> str:
    """The exit codes as the end of a `--help` text; click keeps the lines after a backspace as they are."""
    return "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items())


def exit_code_for(error: ZrpcError) -> int:
    """The exit code of a command that ends with this error."""
    if isinstance(error, LocalFault):
        return USAGE
    if isinstance(error, (Unavailable, DeadlineExceeded, VersionMismatch)):
        return UNREACHABLE
    return CALL_FAILED


def describe_exit(code: int) -> str:
    """How a process ended, from what `subprocess` calls its return code (negative: a signal)."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
