"""`zrpc stop`: ask workers to end."""

from __future__ import annotations

import click

from zrpc.launch.exits import epilog
from zrpc.launch.target import Target

from .targets import target_options


@click.command(epilog=epilog())
@click.argument("names", nargs=-1)
@click.option("--why", default="zrpc stop", help="A reason, for the workers' logs.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the broker.")
@target_options
def stop(target: Target, names: tuple[str, ...], why: str, timeout: float) -> None:
    """Ask workers NAMES to end; without names the whole cluster with its job and its launcher or broker.

    They end on their own time, after the calls that they are serving.

    \b
    Examples:
      zrpc stop
      zrpc stop shard-2
    """
    with target.connect() as client:
        asked = client.stop(names or None, timeout, why)
    click.echo(f"asked to stop: {', '.join(asked) or 'nobody, there are no workers'}")
