"""`zrpc status`: who is in the cluster."""

from __future__ import annotations

import json

import click
from rich.console import Console

from zrpc.launch.exits import epilog
from zrpc.launch.tables import print_status
from zrpc.launch.target import Target
from zrpc.launch.watching import watch_status

from .targets import target_options


@click.command(epilog=epilog())
@click.option("--json", "as_json", is_flag=True, help="Print everything that the broker knows as JSON.")
@click.option("-w", "--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the broker.")
@target_options
def status(target: Target, as_json: bool, watch: bool, timeout: float) -> None:
    """Show the workers: name, id, role, address, state, uptime, calls served and memory.

    \b
    Examples:
      zrpc status
      zrpc status --watch
      zrpc status --json | jq '.members[].name'
      zrpc status --broker tcp://10.0.0.1:5555 --key-file cluster.key
    """
    if watch:
        watch_status(target, timeout)
        return
    with target.connect() as client:
        answer = client.status(timeout)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        print_status(Console(), answer)
