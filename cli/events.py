"""`zrpc events`: what has happened in the cluster."""

from __future__ import annotations

import json

import click
from rich.console import Console

from zrpc.launch.exits import epilog
from zrpc.launch.following import follow_events
from zrpc.launch.tables import event_line
from zrpc.launch.target import Target

from .targets import target_options


@click.command(epilog=epilog())
@click.option("-f", "--follow", is_flag=True, help="Go on showing what happens, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the broker.")
@target_options
def events(target: Target, follow: bool, as_json: bool, timeout: float) -> None:
    """Show joins, leaves, deaths with reasons, restarts, fencing and refused peers, oldest first.

    The broker keeps the last 1000; a restarted broker begins anew.

    \b
    Examples:
      zrpc events
      zrpc events --follow
      zrpc events --json | jq 'select(.kind == "died")'
    """
    console = Console(highlight=False)
    with target.connect() as client:
        for event in follow_events(client, timeout, follow):
            if as_json:
                click.echo(json.dumps(event))
            else:
                console.print(event_line(event), soft_wrap=True)
