"""The `zrpc` command: a group whose commands are one file each.

One rule: a command's module is imported when the command is used, because some of them need torch, which takes seconds.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from zrpc.errors import ZrpcError
from zrpc.launch.exits import epilog, exit_code_for
from zrpc.version import __version__

from . import COMMANDS


class Commands(click.Group):
    """Finds commands by name, and turns errors into one message and the documented exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"zrpc.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ZrpcError as error:
            if os.environ.get("ZRPC_DEBUG") == "1":
                raise
            message = str(error).partition("\nTraceback (most recent call last)")[0]
            click.echo(f"zrpc: {type(error).__name__}: {message}", err=True)
            ctx.exit(exit_code_for(error))


@click.group(cls=Commands, epilog=epilog(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="torch-zrpc", prog_name="zrpc")
def main() -> None:
    """TorchScript calls, Python calls and remote references between processes, on ZeroMQ.

    \b
    Examples:
      zrpc launch configs/quickstart.yaml      start a cluster and run its job
      zrpc status                              the workers of the newest cluster
      zrpc call shard-0 aten::add 'ones(2)' 3  call a function on a worker
    """
    sys.path.insert(0, os.getcwd())  # as `python -m` has it: entries and imports are found from here


if __name__ == "__main__":
    main()
