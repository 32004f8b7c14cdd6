"""`RRef`: a reference to a value on some worker.

One rule: a handle knows its numbers and asks the agent for everything else; the protocol is in `protocol.rrefs`, the
values are in `runtime.references`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from zrpc.errors import RRefMisuse
from zrpc.ids import WorkerInfo
from zrpc.runtime.context import current_agent
from zrpc.runtime.references import Reference

T = TypeVar("T")


class RRef(Reference, Generic[T]):
    """A reference to a value of type `T` that lives on one worker, its owner.

    `RRef(value)` makes this worker the owner of `value`; `zrpc.remote` makes one whose owner is another worker. Passed in
    a call's arguments or result, it arrives as a reference to the same value. The value lives as long as any reference.
    """

    __slots__ = ()

    def __init__(self, value: T) -> None:
        agent = current_agent("creating an RRef")
        super().__init__(agent.references, *agent.references.create_local(value))

    def to_here(self, timeout: float = -1) -> T:
        """The value, copied here; waits until there is one. Raises the error of the call that should have made it,
        `CallTimeout`, or `RRefLost` when its owner is gone. `timeout` is in seconds, -1 the default, 0 none."""
        return self._book.fetch(self, timeout)  # type: ignore[no-any-return]

    def local_value(self) -> T:
        """The value itself, on its owner. Raises `RRefMisuse` elsewhere; waits until there is one."""
        return super().local_value()  # type: ignore[no-any-return]

    def owner(self) -> WorkerInfo:
        """The worker that has the value."""
        return self._book.info_of(self.owner_id)

    def owner_name(self) -> str:
        """The name of the worker that has the value."""
        return self.owner().name

    def confirmed_by_owner(self) -> bool:
        """Whether the owner knows of this reference."""
        return self._book.is_confirmed(self)

    def __repr__(self) -> str:
        if self.is_owner():
            return f"OwnerRRef({self.rref_id})"
        return f"UserRRef(RRefId = {self.rref_id}, ForkId = {self.fork_id})"

    def __getstate__(self) -> Any:
        raise RRefMisuse("Can not pickle rref in python pickler, rref can only be pickled when using RPC")
