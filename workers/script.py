"""A worker that serves a saved TorchScript file: every method of the module is called by name.

    python -m zrpc.workers.script FILE [--name NAME]

The environment says who it is and where the broker is, as for `zrpc.workers.serve`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import zrpc
from zrpc.errors import ConfigError
from zrpc.launch.entries import run_program
from zrpc.launch.serving import serve_to_the_end


def main() -> int:
    """Serve until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="zrpc.workers.script", description="Join, and serve a script file.")
    parser.add_argument("file", type=Path, help="a file that torch.jit.save wrote")
    parser.add_argument("--name", help="its methods are called as NAME.method; default: the file's name without .pt")
    given = parser.parse_args()
    try:
        module = torch.jit.load(str(given.file))  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(str(given.file), [f"expected a file that torch.jit.save wrote: {reason}"]) from None
    zrpc.init_rpc()
    zrpc.register_script(module, given.name or given.file.stem)
    return serve_to_the_end()


if __name__ == "__main__":
    run_program(main)
