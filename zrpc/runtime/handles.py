"""What an RRef is underneath: a handle in the table of references.

One rule: a handle holds its place in the table from when it is made until it is gone, and knows nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from zrpc.errors import RRefMisuse
from zrpc.ids import ForkId, RRefId
from zrpc.protocol.rrefs import Peer as Life
from zrpc.runtime.waiting import wait_for_value

if TYPE_CHECKING:
    from zrpc.runtime.caller import Caller
    from zrpc.runtime.recording import Contexts
    from zrpc.runtime.references import References

Handle = tuple[RRefId, ForkId | None, Life]
"""What the handle of a reference is made of; the fork id is None at the owner."""


class Calls(Protocol):
    """What references ask of their agent."""

    @property
    def caller(self) -> Caller:
        """What makes the agent's calls."""

    @property
    def references(self) -> References:
        """The agent's table of references."""

    @property
    def contexts(self) -> Contexts | None:
        """The agent's distributed autograd contexts."""

    def remote(self, to: Any, func: Any, args: Any, kwargs: Any, timeout: float) -> Handle:
        """Have a worker make a value; returns what the handle of a reference to it is made of."""

    def fetch(self, reference: Reference, timeout: float) -> Any:
        """The value of a reference, wherever it is."""

    def await_value(self, reference: Reference, future: torch.futures.Future[None]) -> None:
        """Complete a future when the value is there, or cannot be."""


class Reference:
    """What an RRef is underneath: its numbers, and one handle in the table of references while it lives.

    `fork_id` is None at the owner.
    """

    __slots__ = ("__weakref__", "_book", "_is_held", "fork_id", "owner_life", "rref_id")

    def __init__(self, book: References, rref_id: RRefId, fork_id: ForkId | None, owner: Life) -> None:
        self._book = book
        self.rref_id = rref_id
        self.fork_id = fork_id
        self.owner_life = owner
        self._is_held = True

    def is_owner(self) -> bool:
        """Whether the value lives on this worker."""
        return self.fork_id is None

    @property
    def contexts(self) -> Contexts | None:
        """The distributed autograd contexts of this worker."""
        return self._book.calls.contexts

    @property
    def owner_id(self) -> int:
        """The id of the worker that has the value."""
        return self.owner_life.worker_id

    def local_value(self) -> Any:
        """The value, at its owner; waits until there is one."""
        if self.fork_id is not None:
            me, owner = self._book.identity.info, self._book.info_of(self.owner_id)
            raise RRefMisuse(
                f"For UserRRef(rref_id={self.rref_id}, fork_id={self.fork_id}), "
                f"can't call localValue() on user {me}. Call it on owner {owner}"
            )
        return wait_for_value(self._book, self.rref_id, self._book.calls.caller.rpc_timeout)

    def __del__(self) -> None:
        if getattr(self, "_is_held", False):
            self._book.discard(self.rref_id, self.fork_id)
