"""zrpc under torch's names, for programs that are not changed: `install()`, or `python -m zrpc.compat script.py ...`."""

from __future__ import annotations

from zrpc.compat.installation import install, is_installed

__all__ = ["install", "is_installed"]
