"""What the running thread is doing, and the one agent of the process.

One rule: this is the only mutable state at module level in zrpc.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

from zrpc.errors import AlreadyInitialized, NotInitialized

if TYPE_CHECKING:
    from zrpc.runtime.agent import Agent
    from zrpc.runtime.scopes import Scope


class Running(threading.local):
    """What this thread does for a call, while it does."""

    agent: Agent | None = None
    """The agent whose pool this thread belongs to; None on the user's own threads."""
    scope: Scope | None = None
    """The call whose function runs here: its deadline is inherited by calls that it makes, and its cancellation."""

    destination: tuple[int, int] | None = None
    """(id, incarnation) of the worker that the message being written is for; None when nothing is being written."""
    expires: float | None = None
    """When nobody reads that message any more: the deadline of its call."""
    forks: list[int] = []  # noqa: RUF012  replaced, never changed, where a message is written
    """Forks made for that message, seven numbers each."""
    origin: tuple[int, int] | None = None
    """(id, incarnation) of the worker whose message is being read; None when nothing is being read."""

    @property
    def deadline(self) -> float | None:
        """Deadline of the call whose function runs here."""
        return None if self.scope is None else self.scope.deadline


running = Running()
collected = threading.local()
"""`future_list`, while it is there: what `rpc_async` of this thread has returned since."""
init_rounds: Counter[str] = Counter()
"""How often this process has joined a group, by init method: so that a second group there finds its own broker."""

_lock = threading.Lock()
_agent: Agent | None = None
_minds_forks = False


def current_agent(what: str = "") -> Agent:
    """The agent of the pool that this thread belongs to, else the process's. Raises `NotInitialized` without one."""
    agent = running.agent or _agent
    if agent is None:
        raise NotInitialized(what)
    return agent


def find_agent() -> Agent | None:
    """The process's agent, None when there is none."""
    return running.agent or _agent


def install_agent(agent: Agent) -> None:
    """Make `agent` the process's one. Raises `AlreadyInitialized` when there is another."""
    global _agent, _minds_forks
    with _lock:
        if _agent is not None:
            raise AlreadyInitialized(_agent.info.name)
        _agent = agent
        if not _minds_forks and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_in_child)
            _minds_forks = True


def _forget_in_child() -> None:
    """A forked child has the agent's memory, but neither its threads nor the right to its sockets: it has no agent."""
    global _agent, _lock
    _lock = threading.Lock()
    _agent = None
    running.agent = None


def remove_agent(agent: Agent) -> None:
    """Forget `agent`, if it is the process's one."""
    global _agent
    with _lock:
        if _agent is agent:
            _agent = None
