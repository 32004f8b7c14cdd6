"""`zrpc worker`: a worker in a terminal of its own."""

from __future__ import annotations

import click

from zrpc.launch.exits import epilog
from zrpc.launch.serving import serve_by_hand
from zrpc.launch.target import Target

from .targets import target_options


@click.command(epilog=epilog())
@click.argument("name")
@click.option("--role", help="What it is for, shown by `zrpc status`.")
@click.option("--import", "modules", metavar="MODULE", multiple=True, help="Import first; again for more.")
@click.option("--entry", metavar="MODULE:FUNCTION", help="Call this once joined, then serve.")
@target_options
@click.pass_context
def worker(
    ctx: click.Context, target: Target, name: str, role: str | None, modules: tuple[str, ...], entry: str | None
) -> None:
    """Join a cluster as worker NAME and answer calls until Ctrl-C, or until `zrpc stop`.

    Without options it joins the newest cluster of this user on this host.

    \b
    Examples:
      zrpc worker shard-0
      zrpc worker shard-0 --import examples.quickstart.model
      zrpc worker shard-0 --broker tcp://10.0.0.1:5555 --key-file cluster.key
    """
    ctx.exit(serve_by_hand(target, name, role, modules, entry))
