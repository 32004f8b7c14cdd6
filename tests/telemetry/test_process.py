"""What this process uses."""

from __future__ import annotations

import psutil

from zrpc.telemetry.process import resident_bytes


def test_memory_is_about_what_others_say() -> None:
    known = psutil.Process().memory_info().rss
    assert 0.5 * known < resident_bytes() < 2 * known


def test_memory_grows_with_what_is_used() -> None:
    before = resident_bytes()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert resident_bytes() > before + (32 << 20)
