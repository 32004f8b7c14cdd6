"""`zrpc completion`: completion of commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from zrpc.launch.exits import epilog


@click.command(epilog=epilog())
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete `zrpc`.

    \b
    Examples:
      eval "$(zrpc completion bash)"                                    in ~/.bashrc
      eval "$(zrpc completion zsh)"                                     in ~/.zshrc
      zrpc completion fish > ~/.config/fish/completions/zrpc.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "zrpc", "_ZRPC_COMPLETE").source())
