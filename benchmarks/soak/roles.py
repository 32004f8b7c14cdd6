"""The processes of the soak, which end when their input does.

python -m benchmarks.soak.roles server BROKER KEY SECONDS      prints what it holds every so many seconds, as JSON
python -m benchmarks.soak.roles caller BROKER KEY NAME         prints how many calls it has made, at the end
"""

from __future__ import annotations

import json
import sys
import threading

import zrpc
from benchmarks.chaos.memory import holdings
from benchmarks.soak.work import SERVER, call_all
from zrpc.runtime.context import current_agent


def be_server(broker: str, key: str, seconds: str) -> int:
    """The worker; prints what it holds, a line of JSON at a time, until its input ends."""
    zrpc.init_rpc(SERVER, broker=broker, key_file=key)
    agent = current_agent()
    over = threading.Event()

    def tell() -> None:
        while not over.wait(float(seconds)):
            print(json.dumps({**holdings(), "served": agent.statistics()["calls_served"]}), flush=True)

    def obey() -> None:
        sys.stdin.read()
        over.set()
        agent.request_stop("the soak is over")

    for target in (tell, obey):
        threading.Thread(target=target, daemon=True).start()
    zrpc.serve()
    zrpc.shutdown(timeout=10)
    return 0


def be_caller(broker: str, key: str, name: str) -> int:
    """Calls until its input ends, and prints how many calls that were."""
    zrpc.init_rpc(name, broker=broker, key_file=key)
    zrpc.wait_for([SERVER], timeout=60)
    print(json.dumps({"up": name}), flush=True)
    over = threading.Event()

    def obey() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=obey, daemon=True).start()
    calls = 0
    while not over.is_set():
        calls += call_all()
    zrpc.shutdown(timeout=10)
    print(json.dumps({"made": calls}), flush=True)
    return 0


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    raise SystemExit(be_server(*rest) if role == "server" else be_caller(*rest))
