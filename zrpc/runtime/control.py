"""Sends the messages of the reference protocol.

One rule: what cannot be sent now is forgotten here; the protocol's machine asks for it again until it is acknowledged, or
until its receiver is known to be lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from zrpc.errors import FrameError, Unavailable
from zrpc.protocol.rrefs import Peer as Life
from zrpc.protocol.rrefs import SendAck, SendControl
from zrpc.runtime.peers import PeerBook
from zrpc.telemetry.trace import Tracer
from zrpc.wire.envelope import RREF_NUMBERS, Envelope, Extra, Kind, pack

BATCH: Final = 256
"""Messages that are sent as one, at most."""
CONTROL: Final = frozenset(
    (
        Kind.RREF_FORK_REQUEST,
        Kind.RREF_CHILD_ACCEPT,
        Kind.RREF_USER_DELETE,
        Kind.RREF_FORK_NOTICE,
        Kind.RREF_CREATION_NOTICE,
        Kind.ACK,
    )
)
"""The kinds of the reference protocol's messages."""
_MAX_U64: Final = (1 << 64) - 1
_MAX_U63: Final = (1 << 63) - 1
_NOTHING: Final = (0,) * RREF_NUMBERS

Said = tuple[int, int, Sequence[int]]
"""A message: its kind, its message id, its ids."""

logger = logging.getLogger(__name__)


class ControlPost:
    """Sends for one agent. `meet` is told of whoever is not in the cluster, as far as is known here."""

    def __init__(self, peers: PeerBook, me: Life, meet: Callable[[Life], None], tracer: Tracer) -> None:
        self._tracer = tracer
        self._peers = peers
        self._me = me
        self._meet = meet

    def send(self, effects: Sequence[SendControl | SendAck]) -> None:
        """Send control messages and acknowledgements to whoever can be reached: in order, those to one worker together."""
        by_receiver: dict[Life, list[Said]] = {}
        for effect in effects:
            by_receiver.setdefault(effect.to, []).append(_said(effect))
        for to, messages in by_receiver.items():
            for start in range(0, len(messages), BATCH):
                self._send(to, messages[start : start + BATCH])

    def _send(self, to: Life, messages: Sequence[Said]) -> None:
        peer = self._peers.find_life(to)
        if peer is None:
            self._meet(to)
            return
        kind, message_id, numbers = messages[0]
        envelope = Envelope(kind, message_id, *self._me, to.incarnation)
        self._tracer.mark(envelope)
        if kind != Kind.ACK:
            envelope.rref = tuple(numbers)
        if len(messages) > 1:
            envelope.extra = {Extra.MORE: [[kind, number, *numbers] for kind, number, numbers in messages[1:]]}
        try:
            peer.send(pack(envelope))
        except Unavailable as error:
            logger.debug("control message to %s not sent: %s", peer, error)


def _said(effect: SendControl | SendAck) -> Said:
    if isinstance(effect, SendAck):
        return Kind.ACK, effect.seq, _NOTHING
    message = effect.message
    owner = message.owner or (0, 0)
    return int(message.kind), 0, (*message.rref_id, *message.fork_id, effect.seq, effect.floor, *owner)


def read_control(envelope: Envelope) -> Iterator[Said]:
    """The messages in an envelope. Raises `FrameError` for what is none, before or after some that are."""
    yield envelope.kind, envelope.message_id, envelope.rref or _NOTHING
    more: Any = envelope.extra.get(Extra.MORE) if envelope.extra else None
    if more is None:
        return
    if type(more) is not list or len(more) >= BATCH:
        raise FrameError(f"further messages of the reference protocol are not a list of fewer than {BATCH}")
    for said in more:
        if type(said) is not list or len(said) != 2 + RREF_NUMBERS or any(type(number) is not int for number in said):
            raise FrameError("a further message of the reference protocol is not its kind, its id and eight ids")
        kind, number, *ids = said
        if kind not in CONTROL or not 0 <= number <= _MAX_U64 or not all(0 <= one <= _MAX_U63 for one in ids):
            raise FrameError("a further message of the reference protocol has numbers out of range")
        yield kind, number, ids
