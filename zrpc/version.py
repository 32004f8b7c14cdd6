"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("torch-zrpc")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"


def is_available() -> bool:
    """True: there for programs that ask torch whether its RPC was built in."""
    return True
