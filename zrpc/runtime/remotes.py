"""What a worker does with values of others: has them made, asks for them.

One rule: a value of this worker takes the same way in as few steps as there are; nothing about it is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from zrpc.clock import Clock
from zrpc.errors import CallTimeout, RRefLost, WorkerLost, ZrpcError
from zrpc.ids import WorkerInfo
from zrpc.runtime.caller import Caller
from zrpc.runtime.futures import Future, complete
from zrpc.runtime.handles import Handle, Reference
from zrpc.runtime.peers import Peer
from zrpc.runtime.profiling import Completion
from zrpc.runtime.raising import kept
from zrpc.runtime.recording import Contexts
from zrpc.runtime.references import References
from zrpc.runtime.scopes import current_scope
from zrpc.runtime.sites import name_of
from zrpc.runtime.waiting import wait_for_value
from zrpc.wire.envelope import Codec, Extra, Kind

if TYPE_CHECKING:
    from zrpc.runtime.agent import Agent

__all__ = ["Handle", "Remotes"]


class Remotes:
    """The side of an agent that references ask. Safe to use from any thread."""

    def __init__(self, agent: Agent, clock: Clock) -> None:
        self._agent = agent
        self._clock = clock

    @property
    def caller(self) -> Caller:
        """What makes the agent's calls."""
        return self._agent.caller

    @property
    def references(self) -> References:
        """The agent's table of references."""
        return self._agent.references

    @property
    def contexts(self) -> Contexts | None:
        """The agent's distributed autograd contexts."""
        return self._agent.values.contexts

    def remote(self, to: str | int | WorkerInfo, func: Any, args: Any, kwargs: Any, timeout: float) -> Handle:
        """Have a worker make a value; returns the handle of a reference to it."""
        peer = self._agent.peers.find(to)
        references = self._agent.references
        if peer.is_self:
            rref_id, _, me = references.create_pending(name_of(func))
            numbers = (*rref_id, *rref_id, 0, 0, 0, 0)

            def on_failure(_value: Any, error: BaseException | None) -> None:
                if error is not None and not isinstance(error, CallTimeout):  # the function may end later than that
                    references.set_value(rref_id, None, error, Codec.PYTHON)

            try:
                self._agent.caller.call(peer, Kind.REMOTE_CALL, func, args, kwargs, timeout, on_failure, numbers)
            except BaseException as error:
                references.set_value(rref_id, None, error, Codec.PYTHON)
                references.discard(rref_id, None)
                raise
            return rref_id, None, me
        fork = references.create_user(peer.key, self._agent.caller.deadline_of(timeout), name_of(func))
        numbers = (*fork.rref_id, *fork.fork_id, fork.seq, 0, 0, 0)

        def on_answer(_value: Any, error: BaseException | None) -> None:
            references.creation_answered(fork, error)

        try:
            self._agent.caller.call(peer, Kind.REMOTE_CALL, func, args, kwargs, timeout, on_answer, numbers)
        except BaseException:
            references.creation_not_sent(fork)
            references.discard(fork.rref_id, fork.fork_id)
            raise
        return fork.rref_id, fork.fork_id, fork.owner

    def fetch(self, reference: Reference, timeout: float) -> Any:
        """The value of a reference, wherever it is."""
        if reference.is_owner():
            seconds = self._agent.caller.seconds(timeout)
            return wait_for_value(self._agent.references, reference.rref_id, seconds, self._clock)
        self._agent.references.check_usable(reference, "call to_here() on it")
        peer = self._agent.peers.find_life(reference.owner_life)
        if peer is None:
            raise self._agent.references.lost(reference)
        assert reference.fork_id is not None
        numbers = (*reference.rref_id, *reference.fork_id, 0, 0, 0, 0)
        what = f"fetching the value of {reference.rref_id}"
        caller = self._agent.caller
        try:
            if current_scope() is None and not self._agent.references.is_confirmed(reference):
                return self._fetch_on_link(peer, what, numbers, timeout)
            return caller.request_sync(peer, Kind.RREF_FETCH, what, numbers, timeout)
        except WorkerLost as error:
            raise RRefLost(str(reference.rref_id), peer.info.name, error.why) from None
        except (RRefLost, CallTimeout):
            self._agent.references.check_usable(reference, "call to_here() on it")  # why its creation failed says more
            raise

    def _fetch_on_link(self, peer: Peer, what: str, numbers: tuple[int, ...], timeout: float) -> Any:
        """Ask for a value whose creation is not answered yet: both answers come on one link, and wake one thread."""
        future: Future[Any] = Future()
        link = peer.attend()
        try:
            self._agent.caller.request(peer, Kind.RREF_FETCH, what, numbers, timeout, future)
        except BaseException:
            if link is not None:
                link.leave()
            raise
        if link is not None:
            link.wait(future, is_attended=True)
        return future.wait()

    def fetch_async(self, reference: Reference, timeout: float, done: Completion, touch: bool = False) -> int:
        """Ask the owner of a reference for the value, or (`touch`) only for word that it is there.

        Returns the number of the request, which `caller.cancel` takes. Raises when nothing was sent.
        """
        self._agent.references.check_usable(reference, "call to_here() on it")
        peer = self._agent.peers.find_life(reference.owner_life)
        rref = str(reference.rref_id)
        owner = self._agent.references.info_of(reference.owner_id).name
        if peer is None:
            raise self._agent.references.lost(reference)
        assert reference.fork_id is not None
        numbers = (*reference.rref_id, *reference.fork_id, 0, 0, 0, 0)

        def answered(value: Any, error: BaseException | None) -> None:
            if isinstance(error, WorkerLost):
                error = RRefLost(rref, owner, error.why)
            done(value, error)

        what = f"{'waiting for' if touch else 'fetching'} the value of {rref}"
        extra: dict[int, Any] | None = {Extra.TOUCH: True} if touch else None
        return self._agent.caller.request(peer, Kind.RREF_FETCH, what, numbers, timeout, answered, extra)

    def await_value(self, reference: Reference, future: torch.futures.Future[None]) -> None:
        """Complete a future when a reference's value is there, or cannot be; in time for the call that makes it."""
        fork_id = reference.fork_id
        if fork_id is None:
            self._agent.references.when_ready(reference.rref_id, lambda _value, error: complete(future, None, error))
            return
        deadline = self._agent.references.creation_deadline(fork_id)

        def done(_value: Any, error: BaseException | None) -> None:
            if isinstance(error, CallTimeout) and deadline is not None:
                self._agent.references.creation_late(fork_id, error)
            complete(future, None, error)

        timeout = 0.0 if deadline is None else max(1e-6, deadline - self._clock())
        try:
            self.fetch_async(reference, timeout, done, touch=True)
        except ZrpcError as error:
            complete(future, None, kept(error))
