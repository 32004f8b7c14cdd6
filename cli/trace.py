"""`zrpc trace`: a trace of a running cluster."""

from __future__ import annotations

from pathlib import Path

import click

from zrpc.launch.exits import epilog
from zrpc.launch.target import Target
from zrpc.launch.traces import take_trace

from .targets import target_options


@click.command(epilog=epilog())
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="How long to record.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds that each worker has to answer.")
@target_options
def trace(target: Target, file: Path, seconds: float, timeout: float) -> None:
    """Record all calls between the workers for a while, and write them to FILE.

    Open FILE at https://ui.perfetto.dev or in chrome://tracing. Ctrl-C ends the recording early, and writes it. A job's
    whole run is recorded by `zrpc launch --trace FILE`.

    \b
    Examples:
      zrpc trace out.json
      zrpc trace out.json --seconds 60 --broker tcp://10.0.0.1:5555 --key-file cluster.key
    """
    with target.connect() as client:
        names = take_trace(client, file, seconds, timeout)
    click.echo(f"{file} has the calls of {', '.join(names) or 'nobody: there are no workers'}")
