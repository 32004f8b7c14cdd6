"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("torch-zrpc")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"
