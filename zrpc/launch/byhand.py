"""A broker started by hand, in a terminal of its own, for workers started by hand: the same cluster as the launcher's.

One rule: it is found like a launched cluster, and ends cleanly on a signal.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zrpc.errors import ConfigError
from zrpc.launch.brokerage import start_broker
from zrpc.launch.exits import INTERRUPTED, SUCCESS
from zrpc.launch.request import BrokerRequest
from zrpc.launch.rundir import RunDirectory
from zrpc.launch.signals import signals_told
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import Keyring, load_key_file, new_keyring, write_key_file

Say = Callable[[str], None]


@dataclass(frozen=True)
class BrokerOrder:
    """What the user wants of a broker."""

    cluster: str = "zrpc"
    bind: str = "tcp://127.0.0.1:0"
    key_file: Path | None = None
    new_key: Path | None = None
    member_key: Path | None = None
    """Where to write the members' key too."""
    expected: tuple[str, ...] = ()
    secure: bool = True
    options: RegistryOptions = field(default_factory=RegistryOptions)
    standby_for: str = ""
    """The address of a broker that this one is to take over from, when it is lost; empty: be in charge."""


def run_broker(order: BrokerOrder, environ: Mapping[str, str], say: Say) -> int:
    """Serve until a signal comes or everybody was asked to stop; the exit code.

    Raises `KeyFileError` or `ConfigError` when it cannot start.
    """
    ends: queue.SimpleQueue[int] = queue.SimpleQueue()
    with signals_told(lambda signum: ends.put(INTERRUPTED + signum)):
        directory = RunDirectory.create(order.cluster, environ)
        try:
            keyring, key_file = _keys(order, directory)
            if keyring is not None and order.member_key is not None:
                key_file = write_key_file(keyring.for_members(), order.member_key).resolve()
            cluster = order.cluster if keyring is None else keyring.cluster
            options = order.options
            if _may_follow(order) and not order.standby_for:
                options = options.following()
                say("its key is not new: members of an earlier broker at this address come first, newcomers wait 1.5 s")
            request = BrokerRequest(
                cluster,
                order.bind,
                keyring,
                joined=lambda name: say(f"{name} has joined"),
                stop_asked=lambda why: ends.put(SUCCESS),
                expected=order.expected,
                options=options,
                remark=say,
                follows=order.standby_for,
            )
            broker = start_broker(request)
            try:
                directory.write_record(cluster, _addresses(order, broker.address), key_file)
                _explain(order, cluster, broker.address, key_file, say)
                return ends.get()
            finally:
                broker.stop()
        finally:
            directory.finish(keep_logs=False)


def _addresses(order: BrokerOrder, address: str) -> str:
    """Where members find whoever is in charge."""
    return f"{order.standby_for},{address}" if order.standby_for else address


def _may_follow(order: BrokerOrder) -> bool:
    """Whether members of an earlier broker may look for it here: not with a key that was just made, which nobody has, and
    not at a port that nobody knows."""
    is_known_place = not order.bind.endswith((":0", ":*"))
    return is_known_place and (order.key_file is not None or not order.secure)


def _keys(order: BrokerOrder, directory: RunDirectory) -> tuple[Keyring | None, Path | None]:
    if order.standby_for and order.secure and order.key_file is None:
        raise ConfigError("zrpc broker --standby", ["expected --key-file with the key file of the other broker"])
    if not order.secure:
        return None, None
    if order.key_file is not None:
        return load_key_file(order.key_file), order.key_file.resolve()
    keyring = new_keyring(order.cluster)
    return keyring, write_key_file(keyring, order.new_key or directory.key_file).resolve()


def _explain(order: BrokerOrder, cluster: str, address: str, key_file: Path | None, say: Say) -> None:
    what = f"standby for {order.standby_for}, broker" if order.standby_for else "broker"
    say(f"{what} of cluster {cluster} at {address}")
    if key_file is None:
        say("security is off: anybody who reaches a port of this cluster can run code in it")
    key = f" --key-file {key_file}" if key_file is not None else ""
    say(f"start workers with: zrpc worker NAME --broker {_addresses(order, address)}{key}")
