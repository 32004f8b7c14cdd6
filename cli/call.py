"""`zrpc call`: one call of a function on a worker."""

from __future__ import annotations

import click

from zrpc.launch.exits import epilog
from zrpc.launch.serving import call_once
from zrpc.launch.target import Target

from .targets import target_options


@click.command(epilog=epilog(), context_settings={"ignore_unknown_options": True})
@click.argument("worker")
@click.argument("function")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the result, 0 without limit.")
@target_options
def call(target: Target, worker: str, function: str, args: tuple[str, ...], timeout: float) -> None:
    """Call FUNCTION on WORKER with ARGS and print the result.

    FUNCTION is a name that the worker has: of a TorchScript function (`__torch__.package.function`), a torch operator
    (`aten::add`) or a Python function (`module:function`). ARGS are Python literals, words, tensors made by tensor,
    zeros, ones, full, arange, linspace, eye, rand, randn, randint or empty, or name=value.

    \b
    Examples:
      zrpc call shard-0 aten::add 'ones(2, 3)' 'tensor([1., 2., 3.])' alpha=2
      zrpc call stage-1 __torch__.examples.quickstart.model.count_correct 'eye(10)' 'arange(10)'
      zrpc call shard-0 os:getpid --timeout 5
    """
    click.echo(call_once(target, worker, function, args, timeout))
