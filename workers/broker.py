"""The broker of a launched cluster, in a process of its own.

    python -m zrpc.workers.broker

The environment says what to serve (ZRPC_BROKER_ORDER, see `zrpc.launch.control`) and with which key (ZRPC_KEY_FILE).
"""

from __future__ import annotations

import os
import socket
import sys

from zrpc.errors import ZrpcError
from zrpc.launch.brokerage import start_broker
from zrpc.launch.control import Control, ProcessOrder
from zrpc.launch.request import BrokerRequest
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import load_key_file


def main() -> int:
    """Serve until the launcher says stop, or is gone."""
    order = ProcessOrder.from_environment()
    control = Control(socket.socket(fileno=order.control))
    key_file = os.environ.get("ZRPC_KEY_FILE")
    times = RegistryOptions.made_of(
        order.heartbeat_interval, order.death_timeout, order.silence_timeout, order.names_per_host
    )
    try:
        broker = start_broker(
            BrokerRequest(
                order.cluster,
                order.bind,
                load_key_file(key_file) if key_file else None,
                joined=lambda name: control.tell(joined=name),
                stop_asked=lambda why: control.tell(stop=why),
                expected=order.expected,
                options=times.following() if order.is_successor else times,
                roles=order.roles,
                scale=lambda role, count: control.tell(scale=[role, count]),
                remark=lambda text: control.tell(remark=text),
                follows=order.follows,
            )
        )
    except ZrpcError as error:
        control.send(failed=str(error))
        return 1
    control.send(ready=broker.address)
    for message in control.lines():
        if "exited" in message:
            broker.exited(*message["exited"])
        elif "stop" in message:
            break
    broker.stop(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
