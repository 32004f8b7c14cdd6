"""`zrpc config`: look at configuration files without starting anything."""

from __future__ import annotations

from pathlib import Path

import click

from zrpc.config.loader import dump_config, load_config
from zrpc.launch.exits import epilog
from zrpc.launch.plan import charges_of


@click.group(epilog=epilog())
def config() -> None:
    """Check and show configuration files."""


@config.command(epilog=epilog())
@click.argument("path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key; again for more.")
def check(path: Path, overrides: tuple[str, ...]) -> None:
    """Say whether CONFIG is good; if not, every problem with its line.

    \b
    Example:
      zrpc config check configs/quickstart.yaml --set job.args.hidden=256
    """
    names = [charge.name for charge in charges_of(load_config(path, overrides).config)]
    click.echo(f"{path}: good; it starts {', '.join(names)}")


@config.command(epilog=epilog())
@click.argument("path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key; again for more.")
def show(path: Path, overrides: tuple[str, ...]) -> None:
    """Print CONFIG with all defaults filled in.

    \b
    Example:
      zrpc config show configs/quickstart.yaml
    """
    click.echo(dump_config(load_config(path, overrides).config), nl=False)
