"""A worker of the chaos as a process of its own: told what to do by lines on its standard input.

python -m benchmarks.chaos.node NAME BROKER KEY FOLDER BIND      lines: quiet, report, exit
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import zrpc
from benchmarks.chaos.load import Load, open_run_log
from benchmarks.chaos.memory import holdings
from zrpc.runtime.context import current_agent


def say(what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(what), flush=True)


def describe(load: Load) -> dict[str, Any]:
    """Where this process stands."""
    agent = current_agent()
    statistics = agent.statistics()
    names = ("owner_rrefs", "user_rrefs", "forks", "pending_calls", "calls_served", "calls_made", "threads")
    return {
        **load.report(),
        **{name: statistics[name] for name in names},
        "table": repr(agent.references._table)[:6000],
        "repeated": agent.callee._served.repeated,
        "contexts": len(agent.values.contexts),
        **holdings(),
    }


def be_worker(name: str, broker: str, key: str, folder: str, bind: str) -> int:
    open_run_log(str(Path(folder) / f"ran-{name}-{os.getpid()}"))
    options = zrpc.AgentOptions(init_timeout=60.0, rpc_timeout=8.0, bind=bind)
    zrpc.init_rpc(name, broker=broker, key_file=key, options=options)
    agent = current_agent()
    load = Load(os.getpid())
    load.start()
    say({"up": name, "life": [agent.info.id, agent.identity.life, agent.identity.incarnation]})

    def obey() -> None:
        for line in sys.stdin:
            if line.strip() == "quiet":
                load.stop()
                gc.collect()
                say({"quiet": name})
            elif line.strip() == "report":
                say({"report": describe(load)})
            elif line.strip() == "exit":
                break
        agent.request_stop("it was told to exit")

    threading.Thread(target=obey, daemon=True).start()
    why = zrpc.serve()
    fenced = agent.fenced
    load.stop()
    say({"ended": name, "why": why, "fenced": fenced, "wrong": load.wrong[:5], "hung": load.hung[:5], **load.report()})
    zrpc.shutdown(graceful=fenced is None, timeout=10)
    return 0


if __name__ == "__main__":
    raise SystemExit(be_worker(*sys.argv[1:]))
