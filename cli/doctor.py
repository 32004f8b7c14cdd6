"""`zrpc doctor`: look for what goes wrong in practice."""

from __future__ import annotations

import click
from rich.console import Console

from zrpc.launch.doctor import examine, is_healthy
from zrpc.launch.exits import JOB_FAILED, SUCCESS, epilog
from zrpc.launch.tables import print_findings
from zrpc.launch.target import Target

from .targets import target_options


@click.command(epilog=epilog())
@target_options
@click.pass_context
def doctor(ctx: click.Context, target: Target) -> None:
    """Check a running cluster: all pairs of workers reach each other, versions agree, clocks, the key file's
    permissions, bound and advertised addresses. Exit code 1 if something is bad.

    \b
    Examples:
      zrpc doctor
      zrpc doctor --broker tcp://10.0.0.1:5555 --key-file cluster.key
    """
    with target.connect() as client:
        findings = list(examine(client, target.key_file))
    print_findings(Console(), findings)
    ctx.exit(SUCCESS if is_healthy(findings) else JOB_FAILED)
