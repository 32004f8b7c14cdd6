"""`RRef`: a reference to a value on some worker.

One rule: a handle knows its numbers and asks the agent for everything else; the protocol is in `protocol.rrefs`, the
values are in `runtime.references`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch._jit_internal import _qualified_name

from zrpc.errors import RRefMisuse
from zrpc.ids import ForkId, RRefId, WorkerInfo
from zrpc.protocol.rrefs import Peer as Life
from zrpc.rref_proxy import RRefProxy, invoke_async, invoke_remote, invoke_sync
from zrpc.runtime.context import current_agent, running
from zrpc.runtime.futures import Future, complete
from zrpc.runtime.handles import Calls, Reference
from zrpc.runtime.methods import NO_CONTEXT, backward, type_of
from zrpc.runtime.profiling import book
from zrpc.runtime.references import References
from zrpc.serialization.grammar import MAX_DEPTH
from zrpc.serialization.pickler import Hooks

T = TypeVar("T")


class RRef(Reference, Generic[T]):
    """A reference to a value of type `T` that lives on one worker, its owner.

    `RRef(value)` makes this worker the owner of `value`; `zrpc.remote` makes one whose owner is another worker. Passed in
    a call's arguments or result, it arrives as a reference to the same value. The value lives as long as any reference.

    `type_hint` is for a `ScriptModule`, and only for one: the `torch.jit.interface` that it is used by.
    """

    __slots__ = ("_future", "_type")

    _future: Future[None] | None
    _type: Future[type] | None

    def __init__(self, value: T, type_hint: Any = None) -> None:
        check_type_hint(value, type_hint)
        references = current_agent("creating an RRef").references
        super().__init__(references, *references.create_local(value))
        self._future = self._type = None

    @classmethod
    def of(cls, references: References, rref_id: RRefId, fork_id: ForkId | None, owner: Life) -> RRef[Any]:
        """The RRef for a handle that the table of references has just given out."""
        rref = cls.__new__(cls)
        Reference.__init__(rref, references, rref_id, fork_id, owner)
        rref._future = rref._type = None
        return rref

    @property
    def _calls(self) -> Calls:
        return self._book.calls

    # ------------------------------------------------------------------------------------ the value

    def to_here(self, timeout: float = -1) -> T:
        """The value, copied here; waits until there is one.

        Raises the error of the call that should have made it, `CallTimeout`, or `RRefLost` when its owner is gone.
        `timeout` is in seconds, -1 for the default, 0 for none.
        """
        return self._calls.fetch(self, timeout)  # type: ignore[no-any-return]

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

    # ------------------------------------------------------------------------------------ its methods

    def rpc_sync(self, timeout: float = -1) -> Any:
        """The value's methods, called on its owner: `rref.rpc_sync().method(arguments)` returns the method's result."""
        return RRefProxy(self, invoke_sync, timeout)

    def rpc_async(self, timeout: float = -1) -> Any:
        """As `rpc_sync`, but the methods return at once, with a future of the result."""
        return RRefProxy(self, invoke_async, timeout)

    def remote(self, timeout: float = -1) -> Any:
        """As `rpc_sync`, but the result stays with the owner: the methods return an RRef to it.

        They wait until the value exists, and raise `AttributeError` here if it has no such method.
        """
        return RRefProxy(self, invoke_remote, timeout)

    def backward(self, dist_autograd_ctx_id: int = NO_CONTEXT, retain_graph: bool = False) -> None:
        """Compute gradients, from the value, a tensor of one element, on.

        Without a context, which only the owner may do, they are added to `.grad` of the tensors that the value was made
        from on the owner. With the id of a distributed autograd context they go there.
        """
        if self.is_owner():
            backward(self, dist_autograd_ctx_id, retain_graph)
        elif dist_autograd_ctx_id == NO_CONTEXT:
            raise RRefMisuse("User RRefs require 'dist_autograd_ctx_id' to be specified")
        else:
            self._calls.caller.call_sync(
                self.owner(), backward, (self, dist_autograd_ctx_id, retain_graph), None, NO_CONTEXT
            )

    # ------------------------------------------------------------------------------------ how it is

    def _get_type(self, timeout: float = -1, blocking: bool = True) -> Any:
        """The type of the value; with `blocking=False` a future of it. The owner is asked once."""
        future = self._type
        if future is None or future.error is not None or (blocking and not future.done()):
            future = self._type = self._ask_type(timeout)
        return future.wait() if blocking else future

    def _ask_type(self, timeout: float) -> Future[type]:
        if self.is_owner():
            future: Future[type] = Future()
            self._book.when_ready(
                self.rref_id, lambda value, error: complete(future, None if error else type(value), error)
            )
            return future
        return self._calls.caller.call_async(self.owner(), type_of, (self,), None, timeout)

    def _get_future(self) -> Future[None]:
        """A future that is done when the value is made, or has the error of the call that should have made it.

        If that takes longer than the timeout of the call was, the reference is of no use from then on.
        """
        future = self._future
        if future is None:
            future = self._future = Future()
            self._calls.await_value(self, future)
        return future

    def _get_profiling_future(self) -> torch.futures.Future[None]:
        """A future that is done when the call that made the value is in the profile that it was made under."""
        maker = book.find_maker(tuple(self.rref_id))
        if maker is None:
            raise RuntimeError("Profiling future has not been set: the value was not made under a profiler")
        return maker.future

    def _check_usable(self, use: str) -> None:
        """Raise why this reference is of no `use` any more, if so."""
        self._book.check_usable(self, use)

    def __repr__(self) -> str:
        if self.is_owner():
            return f"OwnerRRef({self.rref_id})"
        return f"UserRRef(RRefId = {self.rref_id}, ForkId = {self.fork_id})"

    def __reduce__(self) -> Any:
        raise RRefMisuse("Can not pickle rref in python pickler, rref can only be pickled when using RPC")


def check_type_hint(value: Any, type_hint: Any) -> None:
    """A ScriptModule comes with the interface that it is used by, everything else without. Raises `RRefMisuse`."""
    if not isinstance(value, torch.jit.ScriptModule):
        if type_hint is not None:
            raise RRefMisuse("type_hint should only be specified when the RRef being created contains a ScriptModule.")
        return
    if type_hint is None:
        raise RRefMisuse("The RRef being created contains a ScriptModule, must provide its ModuleInterface type hint. ")
    name = _qualified_name(type_hint)
    interface = torch.jit._state._python_cu.get_interface(name)
    actual = value._c._type()
    if interface is None or not actual.isSubtypeOf(interface):
        raise RRefMisuse(f"{actual} is not a subtype of the type hint: {name}, did you pass a valid interface type?\n")


def rebuild_rref(*numbers: int) -> RRef[Any]:
    """Stands in a message for an RRef; only the agent that reads the message can make one of it."""
    raise RRefMisuse(f"an RRef can only be unpickled by an agent, from a message ({len(numbers)} numbers)")


def rref_hooks(references: References, accept_code: bool, max_depth: int = MAX_DEPTH) -> Hooks:
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

    names = {(__name__, rebuild_rref.__name__): rebuild}
    return Hooks({RRef: reduce}, names, restart, modules=accept_code, max_depth=max_depth)
