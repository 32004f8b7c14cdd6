"""`zrpc scale`: more or fewer workers of a role."""

from __future__ import annotations

import click

from zrpc.launch.exits import epilog
from zrpc.launch.following import wait_for_count
from zrpc.launch.target import Target

from .targets import target_options


@click.command(epilog=epilog())
@click.argument("role")
@click.argument("count", type=click.IntRange(0, 10_000))
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait until it is so; 0 does not wait.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the broker.")
@target_options
def scale(target: Target, role: str, count: int, wait: float, timeout: float) -> None:
    """Have COUNT workers of ROLE in a cluster that `zrpc launch` runs.

    New ones are numbered on and started as the configuration says; those with the highest numbers are told to stop, and
    drain.

    \b
    Examples:
      zrpc scale trainer 8
      zrpc scale trainer 2 --wait 0
    """
    with target.connect() as client:
        client.scale(role, count, timeout)
        if not wait:
            click.echo(f"asked for {count} workers of role {role}")
            return
        names = wait_for_count(client, role, count, wait, timeout)
    click.echo(f"role {role} has {count} workers: {', '.join(names) or 'none'}")
