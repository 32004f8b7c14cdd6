"""Torch's profilers, as tests of calls and of passes in them use them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import profiler, profiler_legacy

Profile = Callable[..., Any]
PROFILES: dict[str, Profile] = {
    "legacy": profiler_legacy.profile,
    "autograd": profiler.profile,
    "torch": functools.partial(torch.profiler.profile, activities=[torch.profiler.ProfilerActivity.CPU]),
}


def events_of(profiled: Any) -> list[Any]:
    return list(profiled.events() if hasattr(profiled, "events") else profiled.function_events)
