"""A worker that serves: imports what it is told, joins, runs its entry, and answers calls until it is told to stop.

    python -m zrpc.workers.serve [--import MODULE]... [--entry MODULE:FUNCTION] [--args JSON]

The environment says who it is and where the broker is: ZRPC_NAME, ZRPC_BROKER, ZRPC_KEY_FILE, ZRPC_ROLE, ZRPC_OPTIONS.
"""

from __future__ import annotations

import argparse

import zrpc
from zrpc.launch.entries import load_entry, load_modules, parse_arguments, run_program
from zrpc.launch.serving import run_entry, serve_to_the_end


def main() -> int:
    """Serve until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="zrpc.workers.serve", description="Join the cluster and answer calls.")
    parser.add_argument("--import", dest="modules", action="append", default=[], help="a module to import first")
    parser.add_argument("--entry", help="module:function, called once joined; serving goes on when it returns")
    parser.add_argument("--args", default="{}", help="the entry's arguments, a JSON object")
    given = parser.parse_args()
    load_modules(given.modules)
    entry = load_entry(given.entry) if given.entry else None
    arguments = parse_arguments(given.args)
    zrpc.init_rpc()
    if entry is not None:
        run_entry(entry, arguments)
    return serve_to_the_end()


if __name__ == "__main__":
    run_program(main)
