"""Who waits until the owners of references know of them.

One rule: each waiter is called once, when the last of its references is known or lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from zrpc.ids import ForkId

Then = Callable[[], None]


class Confirmations:
    """The waiters, by fork. Used under the lock of the references, but for the waiters' own counting."""

    def __init__(self) -> None:
        self._waiters: dict[ForkId, list[Then]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def wait_for(self, forks: Sequence[ForkId], then: Then) -> bool:
        """Have `then` called when all of `forks` have been taken; False, and nothing else, if there are none."""
        if not forks:
            return False
        count = itertools.count(1)  # its next() is one step, whichever threads the forks are taken by

        def one_is() -> None:
            if next(count) == len(forks):
                then()

        for fork_id in forks:
            self._waiters.setdefault(fork_id, []).append(one_is)
        return True

    def take(self, fork_id: ForkId) -> list[Then]:
        """What is to be called now that the owner knows of a fork, or is lost."""
        return self._waiters.pop(fork_id, [])
