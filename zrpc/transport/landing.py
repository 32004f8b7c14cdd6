"""Memory that large frames are received into, and that is used again when nobody uses what was received.

One rule: memory that is given out has one user, until the last view of it is gone.

Fresh memory is dear (touching 64 MiB for the first time takes 100 ms and more on a VM, a copy of as much 6), and the C
library gives pieces of that size back to the system at once.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Final

import numpy as np

LEAST_BYTES: Final = 256 * 1024
"""Smaller ones come from the C library, which keeps them itself."""
KEPT_BYTES: Final = 256 << 20
"""Unused memory that is kept, in all."""
KEPT_PIECES: Final = 256


class Landed(np.ndarray[Any, Any]):
    """The memory of one received frame: its receiver's own, to read and to write."""

    is_given = True
    """Whoever makes tensors of such memory need not copy it."""


def _view(piece: Any) -> memoryview:
    """A view of memory that says whose it is."""
    landed: Any = piece.view(Landed)
    return memoryview(landed)


class Landing:
    """Gives out memory. Safe to use from any thread; what finalizers do takes no lock."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._unused: deque[Any] = deque()

    def __repr__(self) -> str:
        return f"<Landing unused={self.unused_bytes()}>"

    def unused_bytes(self) -> int:
        """Bytes that are kept for later."""
        return sum(piece.nbytes for piece in list(self._unused))

    def take(self, size: int) -> memoryview:
        """Writable memory of that size, not cleared."""
        if size < LEAST_BYTES:
            return _view(np.empty(size, np.uint8))
        piece = self._find(size)
        if piece is None:
            piece = np.empty(size, np.uint8)
        view = _view(piece[:size])
        weakref.finalize(view.obj, self._take_back, piece).atexit = False
        return view

    def _find(self, size: int) -> Any:
        """An unused piece that is not much larger. Pieces that were not right are now the last to be looked at."""
        unused = self._unused
        for _ in range(len(unused)):
            try:
                piece = unused.popleft()
            except IndexError:  # another thread was quicker
                return None
            if size <= piece.nbytes <= size + size // 4:
                return piece
            unused.append(piece)
        return None

    def _take_back(self, piece: Any) -> None:
        """Nothing uses it any more: keep it, in the place of those that were not used for longest."""
        unused = self._unused
        if piece.nbytes > self._limit:
            return
        unused.append(piece)
        while len(unused) > KEPT_PIECES or self.unused_bytes() > self._limit:
            try:
                unused.popleft()
            except IndexError:
                return
