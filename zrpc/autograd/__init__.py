"""Gradients through calls: `context`, `backward` and `get_gradients`, by torch's names and with torch's meaning."""

from __future__ import annotations

from zrpc.autograd.api import (
    _current_context,
    _get_debug_info,
    _get_max_id,
    _is_valid_context,
    _new_context,
    _release_context,
    _retrieve_context,
    backward,
    context,
    get_gradients,
    is_available,
)
from zrpc.autograd.book import attach
from zrpc.autograd.context import DistAutogradContext

__all__ = [
    "DistAutogradContext",
    "_current_context",
    "_get_debug_info",
    "_get_max_id",
    "_is_valid_context",
    "_new_context",
    "_release_context",
    "_retrieve_context",
    "attach",
    "backward",
    "context",
    "get_gradients",
    "is_available",
]
