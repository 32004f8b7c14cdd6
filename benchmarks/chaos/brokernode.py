"""A broker of the chaos as a process of its own, or a prober that joins when it is told to. It imports no torch.

python -m benchmarks.chaos.brokernode serve ADDRESS KEY first|next [FOLLOWS]     lines: report, exit
python -m benchmarks.chaos.brokernode probe ADDRESSES KEY                         lines: join NAME, exit

What happens is said with the time of the system's monotonic clock, which all processes of one host share.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
import time
from typing import Any

from zrpc.broker.client import BrokerClient
from zrpc.broker.server import BrokerServer
from zrpc.errors import ZrpcError
from zrpc.protocol.effects import News, StandbyJoined, StandbyLost, SteppedDown, TookOver
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import load_key_file
from zrpc.transport.router import ZmqTransport
from zrpc.wire.messages import Hello

PATIENCE = 90.0
"""Seconds that a newcomer waits to be let in."""
STAY = 1.0
"""Seconds that it stays, so that others hear of it: of the id of one that left at once nobody knows when both brokers are
gone."""
TOLD = (StandbyJoined, StandbyLost, SteppedDown, TookOver)

_saying = threading.Lock()


def say(what: dict[str, Any]) -> None:
    with _saying, contextlib.suppress(BrokenPipeError):
        print(json.dumps({**what, "at": time.monotonic()}), flush=True)


def serve(address: str, key: str, which: str, follows: str = "") -> int:
    """As `zrpc launch` starts one: with the same options, and as a successor from the second on."""

    def tell(news: News) -> None:
        if isinstance(news, TOLD):
            say({"news": type(news).__name__, "what": str(news)})

    options = RegistryOptions(is_successor=which == "next")
    heartbeats = options.connection_heartbeats_ms
    transport = ZmqTransport(load_key_file(key), "broker", broker_heartbeats_ms=heartbeats)
    server = BrokerServer(transport, address, cluster="chaos", options=options, on_event=tell, follows=follows)
    server.start()
    say({"broker": server.address, "in charge": not follows})
    for line in sys.stdin:
        if line.strip() == "exit":
            break
        status = server.status()
        members = {member["name"]: member["id"] for member in status["members"] if member["state"] == "up"}
        say({"report": {**status, "members": members}})
    server.stop()
    transport.close()
    return 0


def join(transport: ZmqTransport, addresses: str, name: str) -> None:
    """Join as a newcomer of that name, say how long it took, and leave."""
    began = time.monotonic()
    hello = Hello(name=name, nonce=secrets.randbits(63) | 1, address="tcp://127.0.0.1:9")
    try:
        client = BrokerClient(transport, addresses, hello)
        welcome = client.join(began + PATIENCE)
    except ZrpcError as error:
        say({"probe": name, "failed": f"{type(error).__name__}: {error}", "began": began})
        return
    say(
        {
            "probe": name,
            "began": began,
            "seconds": time.monotonic() - began,
            "by": client.broker,
            "life": [welcome.id, welcome.life, welcome.incarnation],
        }
    )
    time.sleep(STAY)
    client.leave("it only looked whether it is let in")
    client.close()


def probe(addresses: str, key: str) -> int:
    transport = ZmqTransport(load_key_file(key), "member")
    for line in sys.stdin:
        command, _, name = line.strip().partition(" ")
        if command == "exit":
            break
        threading.Thread(target=join, args=(transport, addresses, name), daemon=True).start()
    return 0


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    raise SystemExit(serve(*rest) if role == "serve" else probe(*rest))
