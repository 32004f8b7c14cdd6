"""`RRef`: a reference to a value on some worker.

One rule: a handle knows its numbers and asks the agent for everything else; the protocol is in `protocol.rrefs`, the
values are in `runtime.references`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from zrpc.errors import RRefMisuse
from zrpc.ids import ForkId, RRefId, WorkerInfo
from zrpc.protocol.rrefs import Peer as Life
from zrpc.runtime.context import current_agent, running
from zrpc.runtime.references import Reference, References
from zrpc.serialization.pickler import Hooks

T = TypeVar("T")


class RRef(Reference, Generic[T]):
    """A reference to a value of type `T` that lives on one worker, its owner.

    `RRef(value)` makes this worker the owner of `value`; `zrpc.remote` makes one whose owner is another worker. Passed in
    a call's arguments or result, it arrives as a reference to the same value. The value lives as long as any reference.
    """

    __slots__ = ()

    def __init__(self, value: T) -> None:
        references = current_agent("creating an RRef").references
        super().__init__(references, *references.create_local(value))

    @classmethod
    def of(cls, references: References, rref_id: RRefId, fork_id: ForkId | None, owner: Life) -> RRef[Any]:
        """The RRef for a handle that the table of references has just given out."""
        rref = cls.__new__(cls)
        Reference.__init__(rref, references, rref_id, fork_id, owner)
        return rref

    def to_here(self, timeout: float = -1) -> T:
        """The value, copied here; waits until there is one.

        Raises the error of the call that should have made it, `CallTimeout`, or `RRefLost` when its owner is gone.
        `timeout` is in seconds, -1 for the default, 0 for none.
        """
        return self._book.fetch(self, timeout)  # type: ignore[no-any-return]

    def local_value(self) -> T:
        """The value itself, on its owner; waits until there is one. Raises `RRefMisuse` elsewhere."""
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

    def __reduce__(self) -> Any:
        raise RRefMisuse("Can not pickle rref in python pickler, rref can only be pickled when using RPC")


def rebuild_rref(*numbers: int) -> RRef[Any]:
    """Stands in a message for an RRef; only the agent that reads the message can make one of it."""
    raise RRefMisuse(f"an RRef can only be unpickled by an agent, from a message ({len(numbers)} numbers)")


def rref_hooks(references: References, accept_code: bool) -> Hooks:
    """Teaches the codecs to write and to read RRefs."""

    def reduce(rref: RRef[Any]) -> tuple[Any, ...]:
        return rebuild_rref, references.fork_for_message(rref)

    def rebuild(*numbers: int) -> RRef[Any]:
        return RRef.of(references, *references.fork_from_message(numbers))

    def restart() -> None:
        forks = list(running.forks)
        running.forks.clear()
        if forks and running.destination is not None:
            references.take_back(forks, running.destination)

    return Hooks({RRef: reduce}, {(__name__, rebuild_rref.__name__): rebuild}, restart, modules=accept_code)
