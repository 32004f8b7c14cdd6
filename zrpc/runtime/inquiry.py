"""Asking a callee about calls that ran out of time, before their errors are raised.

One rule: whoever waits for the error waits at most `PATIENCE` longer, and what goes wrong with the question is no error of
its own: the call ends as late as it is, with less of an explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from zrpc.clock import Clock
from zrpc.errors import CallTimeout, WorkerLost, ZrpcError
from zrpc.runtime.callables import Target
from zrpc.runtime.exchanges import Handler
from zrpc.runtime.inspection import read_map, write_map
from zrpc.runtime.peers import Peer
from zrpc.runtime.progress import PATIENCE, question_about, sentences, unanswered
from zrpc.wire.envelope import Envelope, Kind, pack

Asked = tuple[int, tuple[int, ...] | None]
"""A message id, and the header's rref numbers."""


class Late(Protocol):
    """A call that has run out of time."""

    message_id: int
    peer: Peer
    envelope: Envelope
    target: Target
    timeout: float

    def end(self, value: Any, error: BaseException | None) -> None: ...


def ask_on_a_lane(peer: Peer, question: Envelope, asked: Asked, late: Handler, clock: Clock) -> str:
    """What the callee says about one call; waits for the answer on a connection that nothing else uses."""
    write_map(question, question_about([asked]))
    try:
        lane = peer.borrow_lane()
    except ZrpcError as error:
        return str(error)
    try:
        deadline = clock() + PATIENCE
        answer = lane.exchange(pack(question), question.message_id, deadline, peer, late, clock)
    except WorkerLost as error:
        peer.abandon_lane(lane)
        return f"The worker was lost meanwhile: {error.why}."
    except ZrpcError as error:
        peer.abandon_lane(lane)
        return str(error)
    if answer is None:
        peer.abandon_lane(lane)
        return unanswered(PATIENCE)
    peer.return_lane(lane)
    return _read(answer)


def _read(answer: Envelope) -> str:
    if answer.kind != Kind.ANSWER:
        return ""
    try:
        return sentences(read_map(answer), 1)[0]
    except ZrpcError:
        return ""


Inspect = Callable[[Peer, Mapping[str, Any], float, Callable[[Any, BaseException | None], None]], None]
"""Asks a worker about itself; see `Caller.inspect`."""


def ask_about(calls: Sequence[Late], inspect: Inspect) -> None:
    """End late calls with `CallTimeout`, when each callee has been asked once about its own. Does not block."""
    by_peer: dict[Peer, list[Late]] = {}
    for call in calls:
        if call.envelope.kind == Kind.INSPECT:
            _end(call, "")  # it was a question itself
            continue
        by_peer.setdefault(call.peer, []).append(call)
    for peer, group in by_peer.items():
        _ask_one(peer, group, inspect)


def _ask_one(peer: Peer, group: list[Late], inspect: Inspect) -> None:
    def done(answer: Any, error: BaseException | None) -> None:
        if error is None:
            said = sentences(answer, len(group))
        elif isinstance(error, WorkerLost):
            said = [f"The worker was lost meanwhile: {error.why}."] * len(group)
        else:
            said = [unanswered(PATIENCE)] * len(group)
        for call, sentence in zip(group, said, strict=True):
            _end(call, sentence)

    question = question_about([(call.message_id, call.envelope.rref) for call in group])
    try:
        inspect(peer, question, PATIENCE, done)
    except ZrpcError as error:
        done(None, error)


def _end(call: Late, state: str) -> None:
    call.end(None, CallTimeout(call.peer.info.name, call.target.name, call.timeout, state))
