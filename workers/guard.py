"""Runs a worker's module in a process that cannot outlive its launcher.

One rule: this file is run by its path and imports nothing of zrpc, so that the guard stands before any long import.

    python guard.py DESCRIPTOR MODULE [ARGUMENT ...]

DESCRIPTOR is the reading end of a pipe that the launcher holds open and never writes to. However the launcher ends, the
system closes its end; then the whole process group of the worker is killed, with everything that it has started. A pipe
was taken over PR_SET_PDEATHSIG, which knows one system only, one thread only, and no grandchildren.
"""

import os
import runpy
import select
import signal
import sys
import threading

GRACE = 1.0
"""Seconds that the guard has to end a process which ends at the same moment as its launcher."""


def watch(descriptor: int) -> None:
    """Wait for the end of the launcher; end with it."""
    try:
        while os.read(descriptor, 1):
            pass
    except OSError:
        return
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Start watching, then run the module as `python -m` would."""
    descriptor, module = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)
    watcher = threading.Thread(target=watch, args=(descriptor,), name="zrpc-guard", daemon=True)
    watcher.start()
    sys.argv = sys.argv[2:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except BrokenPipeError:  # nobody reads the output any more: likely the launcher is gone, and soon noticed to be
        watcher.join(GRACE)
        raise
    finally:
        if select.select([descriptor], [], [], 0.0)[0]:  # it is gone, and would not kill what this process has started
            watcher.join(GRACE)


if __name__ == "__main__":
    # The directory of this file came first; what is in it is reached as zrpc.workers and must not shadow anything.
    del sys.path[0]
    main()
