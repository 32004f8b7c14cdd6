"""`zrpc broker`: a broker in a terminal of its own."""

from __future__ import annotations

import os
from pathlib import Path

import click

from zrpc.launch.byhand import BrokerOrder, run_broker
from zrpc.launch.exits import epilog
from zrpc.protocol.membership import RegistryOptions


@click.command(epilog=epilog())
@click.option("--bind", default="tcp://127.0.0.1:0", show_default=True, help="Address; port 0 takes a free one.")
@click.option("--cluster", default="zrpc", show_default=True, help="The cluster's name; a key file has one itself.")
@click.option("--new-key", type=click.Path(path_type=Path), metavar="FILE", help="Make a key file there.")
@click.option("--member-key", type=click.Path(path_type=Path), metavar="FILE", help="Write a members' key there.")
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE", help="Use this key file.")
@click.option("--standby", metavar="ADDRESS", default="", help="Stand by for the broker there.")
@click.option("--expect", metavar="NAMES", default="", help="Workers that will come, with commas; ids in this order.")
@click.option("--heartbeat-interval", default=0.5, show_default=True, help="Seconds between two reports of a member.")
@click.option("--death-timeout", default=3.0, show_default=True, help="Seconds until who is cut off is dead.")
@click.option("--silence-timeout", default=30.0, show_default=True, help="The same for who is connected, but silent.")
@click.option("--insecure", is_flag=True, help="No encryption: anybody who reaches a port can run code.")
@click.pass_context
def broker(
    ctx: click.Context,
    bind: str,
    cluster: str,
    new_key: Path | None,
    member_key: Path | None,
    key_file: Path | None,
    standby: str,
    expect: str,
    heartbeat_interval: float,
    death_timeout: float,
    silence_timeout: float,
    insecure: bool,
) -> None:
    """Serve as the broker of a cluster until Ctrl-C, or until `zrpc stop`.

    Without a key file it makes one, which other commands of the same user on this host find by themselves.

    \b
    Examples:
      zrpc broker
      zrpc broker --bind tcp://10.0.0.1:5555 --new-key cluster.key
      zrpc broker --bind tcp://10.0.0.2:5555 --key-file cluster.key --standby tcp://10.0.0.1:5555
      zrpc broker --bind tcp://10.0.0.1:5555 --key-file cluster.key --expect shard-0,shard-1
    """
    if sum([new_key is not None, key_file is not None, insecure]) > 1:
        raise click.UsageError("--new-key, --key-file and --insecure exclude one another")
    expected = tuple(name.strip() for name in expect.split(",") if name.strip())
    times = RegistryOptions.made_of(heartbeat_interval, death_timeout, silence_timeout)
    order = BrokerOrder(cluster, bind, key_file, new_key, member_key, expected, not insecure, times, standby)
    ctx.exit(run_broker(order, os.environ, click.echo))
