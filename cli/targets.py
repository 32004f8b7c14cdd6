"""The options by which commands find a cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from zrpc.launch.target import find_target


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --broker, --key-file and --run-dir to a command, which gets the `Target` that they mean as `target`."""

    @click.option(
        "--broker",
        metavar="ADDRESS",
        help="Where the broker is, tcp://HOST:PORT[,STANDBY].  [env: ZRPC_BROKER]",
    )
    @click.option("--key-file", metavar="FILE", help="The cluster's key file.  [env: ZRPC_KEY_FILE]")
    @click.option("--run-dir", metavar="DIR", help="The run directory of a cluster on this host.")
    @functools.wraps(command)
    def with_target(broker: str | None, key_file: str | None, run_dir: str | None, **others: Any) -> Any:
        return command(target=find_target(os.environ, broker, key_file, run_dir), **others)

    return with_target
