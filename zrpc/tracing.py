"""`zrpc.trace`: a trace of the whole cluster, taken by one of its workers."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from zrpc.errors import WorkerLost, ZrpcError
from zrpc.runtime.agent import Agent
from zrpc.runtime.context import current_agent
from zrpc.runtime.futures import Future, complete
from zrpc.telemetry.collect import Collector, Who, write_trace
from zrpc.wire.messages import Member

ASK_TIMEOUT = 10.0
"""Seconds that a worker has to answer a question about a trace."""
VARIABLE = "ZRPC_TRACE"
"""Names the file that a launched job writes a trace of its cluster to."""


@contextlib.contextmanager
def trace(path: str | os.PathLike[str], *, otel: bool = True) -> Iterator[None]:
    """Record, until the end of the block, all calls of all workers, and write them to a file for Perfetto or Chrome.

    Workers that join meanwhile are in it; one that is gone at the end is not, and the file says so. The file is written
    when the block ends, by an exception too. `otel`: spans go to OpenTelemetry besides, on the workers where that is
    installed and set up. See docs/tracing.md for what is in the file.

    Raises `NotInitialized` without an agent, and OSError at once when the file cannot be written.
    """
    agent = current_agent("trace")
    target = Path(path)
    target.touch()
    collector = Collector(
        functools.partial(_ask, agent),
        secrets.token_hex(8),
        taker=agent.info.name,
        owner=agent.info.id,
        otel=otel,
    )
    join = functools.partial(_switch_on, agent, collector)
    agent.at_join.append(join)
    collector.begin([_who(member) for member in agent.members()])
    try:
        yield
    finally:
        agent.at_join.remove(join)
        write_trace(target, collector.finish())


def block(name: str) -> AbstractContextManager[None]:
    """A context manager that gives a part of the program a name in traces; calls made in it become its children.

    Costs next to nothing while no trace is taken. Raises `NotInitialized` without an agent.
    """
    return current_agent("block").tracer.span(name)


@contextlib.contextmanager
def trace_if_told(environ: Mapping[str, str]) -> Iterator[None]:
    """Take a trace if the environment names a file for it."""
    path = environ.get(VARIABLE, "")
    with trace(path) if path else contextlib.nullcontext():
        yield


def _who(member: Member) -> Who:
    return Who(member.name, member.id, member.incarnation, member.address)


def _ask(agent: Agent, who: Who, question: dict[str, Any]) -> dict[str, Any]:
    peer = agent.peers.find_life((who.id, who.incarnation))
    if peer is None:
        raise WorkerLost(who.name, "it is not in the cluster any more", "asking it for its part of a trace")
    future: Future[dict[str, Any]] = Future()
    agent.caller.inspect(peer, question, ASK_TIMEOUT, lambda value, error: complete(future, value, error))
    return future.wait()


def _switch_on(agent: Agent, collector: Collector, member: Member) -> None:
    """A worker has joined. Runs on the receiving thread, and so does not wait for the answer."""
    who = _who(member)
    collector.add(who)
    with contextlib.suppress(ZrpcError):
        peer = agent.peers.find_life((who.id, who.incarnation))
        if peer is not None:
            agent.caller.inspect(peer, collector.question, ASK_TIMEOUT, lambda _value, _error: None)
