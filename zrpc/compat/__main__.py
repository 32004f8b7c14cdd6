"""`python -m zrpc.compat [-m module | script.py] arguments...`: runs a program with zrpc in torch's place."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from zrpc.compat.installation import install

USAGE = """\
usage: python -m zrpc.compat script.py [arguments]
       python -m zrpc.compat -m module [arguments]

Runs a program with zrpc under the names torch.distributed.rpc, torch.distributed.autograd,
torch.distributed.optim.DistributedOptimizer and torch.distributed.nn.RemoteModule, also in the
processes that it starts.
"""


def main(arguments: list[str]) -> int:
    """Run the program. Returns 2 when none was named; else the program decides how it ends."""
    is_module = arguments[:1] == ["-m"]
    program = arguments[is_module:]
    if not program or (not is_module and program[0].startswith("-")):
        print(USAGE, file=sys.stderr if arguments not in (["-h"], ["--help"]) else sys.stdout, end="")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    install()
    sys.argv = program
    if is_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        return 0
    sys.path[0] = str(Path(program[0]).resolve().parent)
    runpy.run_path(program[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
