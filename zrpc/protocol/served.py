"""Which calls have been taken on, so that none runs twice.

One rule: a message id of a life is accepted once, whatever the network repeats. A caller numbers its messages upwards, and
never again uses a number in its life; what is older than `SPAN` numbers is taken for a repetition, since it cannot be
told from one.

The memory is a bit for each number, in chunks: what a caller sends to others leaves gaps that cost nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from zrpc.protocol.calls import WorkerKey

CHUNK_BITS: Final = 10
"""Numbers in a chunk, as a power of two: an integer of 128 bytes."""
CHUNKS: Final = 128
"""Chunks kept for each caller: 131,072 numbers, 16 KiB. At 10,000 calls a second one may be overtaken for 13 s."""
SPAN: Final = CHUNKS << CHUNK_BITS
LIVES: Final = 4096
"""Callers remembered at most; the one that has been silent for longest is forgotten first."""

_MASK: Final = (1 << CHUNK_BITS) - 1


class _Caller:
    __slots__ = ("chunks", "newest")

    def __init__(self) -> None:
        self.newest = 0
        self.chunks: dict[int, int] = {}


class Served:
    """The calls that one worker has taken on."""

    def __init__(self, lives: int = LIVES) -> None:
        self._lives = lives
        self._callers: OrderedDict[WorkerKey, _Caller] = OrderedDict()
        self.repeated = 0
        """Calls that were not accepted."""

    def __repr__(self) -> str:
        return f"<Served callers={len(self._callers)} repeated={self.repeated}>"

    def accept(self, sender: WorkerKey, message_id: int) -> bool:
        """Take on a call: True the first time, False for each repetition."""
        caller = self._callers.get(sender)
        if caller is None:
            caller = self._begin(sender)
        number = message_id >> CHUNK_BITS
        if number > caller.newest:
            self._advance(sender, caller, number)
        elif number <= caller.newest - CHUNKS:
            self.repeated += 1
            return False
        bit = 1 << (message_id & _MASK)
        seen = caller.chunks.get(number, 0)
        if seen & bit:
            self.repeated += 1
            return False
        caller.chunks[number] = seen | bit
        return True

    def _begin(self, sender: WorkerKey) -> _Caller:
        caller = self._callers[sender] = _Caller()
        if len(self._callers) > self._lives:
            self._callers.popitem(last=False)
        return caller

    def _advance(self, sender: WorkerKey, caller: _Caller, number: int) -> None:
        caller.newest = number
        self._callers.move_to_end(sender)
        oldest = number - CHUNKS
        for old in [chunk for chunk in caller.chunks if chunk <= oldest]:
            del caller.chunks[old]
