"""A call that has been made and has not ended, and what is said of its end.

One rule: a record; the table of `protocol.calls` decides who completes it.
"""

from __future__ import annotations

from zrpc.errors import LocalFault
from zrpc.runtime.callables import Target
from zrpc.runtime.peers import Peer
from zrpc.runtime.profiling import Completion, ProfiledCall
from zrpc.wire.envelope import Envelope

RRefNumbers = tuple[int, ...]
"""The eight ids of the header's rref field."""
MANY = 4
"""Calls under way from which on further ones are sent together: a lone call, or a few, leave at once."""
MAX_TIMEOUT = 1e9
"""Seconds, 31 years: more than that does not fit all clocks and fields that a deadline passes through."""


class PendingCall:
    """A call that waits for its reply."""

    __slots__ = ("deadline", "done", "envelope", "message_id", "peer", "profiled", "target", "timeout")

    def __init__(
        self,
        message_id: int,
        peer: Peer,
        target: Target,
        envelope: Envelope,
        deadline: float | None,
        timeout: float,
        done: Completion,
        profiled: ProfiledCall | None = None,
    ) -> None:
        self.message_id = message_id
        self.peer = peer
        self.target = target
        self.envelope = envelope
        self.deadline = deadline
        self.timeout = timeout
        self.done = done
        self.profiled = profiled


def check_timeout(timeout: float) -> float:
    """`timeout` if it is one: seconds, 0 for none, -1 for the default. Raises `LocalFault` otherwise."""
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not (timeout == -1 or 0 <= timeout <= MAX_TIMEOUT):
        raise LocalFault(
            f"timeout is seconds as a number (at most {MAX_TIMEOUT:g}), 0 for none or -1 for the default, not {timeout!r}"
        )
    return timeout
