"""What a process holds: resident memory by kind, descriptors, and what its allocator has given out.

One rule: what is resident and what is in use are told apart. glibc keeps what was freed, in an arena for each few threads,
so that the resident memory of a process that handles large tensors on many threads grows for minutes though nothing leaks.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from typing import Any

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def heap() -> tuple[int, int]:
    """Bytes that the allocator has given out, and bytes that it keeps for later; zeros where it does not say."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0, 0
    ask.restype = _Mallinfo
    found: Any = ask()
    return found.uordblks + found.hblkhd, found.fordblks


def resident(pid: int | str = "self") -> dict[str, int]:
    """Bytes of memory of a process: all, private, shared. Raises OSError when it has ended."""
    names = {"VmRSS": "resident", "RssAnon": "private", "RssShmem": "shared"}
    found = dict.fromkeys(names.values(), 0)
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in names:
                found[names[name]] = int(rest.split()[0]) * 1024
    return found


def descriptors(pid: int | str = "self") -> int:
    """Open descriptors of a process. Raises OSError when it has ended."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def holdings() -> dict[str, int]:
    """What this process holds."""
    in_use, kept = heap()
    return {
        **resident(),
        "in_use": in_use,
        "kept_free": kept,
        "python_blocks": sys.getallocatedblocks(),
        "descriptors": descriptors(),
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through these points with the least squares; 0.0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
