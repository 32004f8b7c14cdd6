"""`zrpc launch`: start a cluster from a configuration and run its job."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from zrpc.config.loader import load_config
from zrpc.launch.brokerprocess import start_broker_process
from zrpc.launch.exits import epilog
from zrpc.launch.launcher import Launcher, Presentation


@click.command(epilog=epilog())
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key; again for more.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where keys and logs go; logs stay there.")
@click.option(
    "--trace", type=click.Path(path_type=Path, dir_okay=False), help="Record all calls in a file for Perfetto."
)
@click.option("-q", "--quiet", is_flag=True, help="Show what the job prints, and failures, only.")
@click.option("-v", "--verbose", is_flag=True, help="Show addresses and processes too.")
@click.pass_context
def launch(
    ctx: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    trace: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Start a broker, the workers and the job of CONFIG, and stop everything when the job ends.

    Each line of output begins with the name of the process that printed it. Ctrl-C stops everything within 5 seconds; a
    second one kills. The processes cannot outlive this command. Logs are kept when something failed.

    \b
    Examples:
      zrpc launch configs/quickstart.yaml
      zrpc launch configs/quickstart.yaml --set job.args.steps=500 --set options.rpc_timeout=5
      zrpc launch cluster.yaml --run-dir ./run -v
      zrpc launch configs/quickstart.yaml --trace out.json
    """
    loaded = load_config(config, overrides)
    show = Presentation(sys.stdout, quiet, verbose)
    ctx.exit(Launcher(loaded, start_broker_process, show=show, run_dir=run_dir, trace=trace).run())
