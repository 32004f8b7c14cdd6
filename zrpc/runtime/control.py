"""Sends the messages of the reference protocol.

One rule: what cannot be sent now is forgotten here; the protocol's machine asks for it again until it is acknowledged, or
until its receiver is known to be lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from zrpc.errors import Unavailable
from zrpc.protocol.rrefs import Peer as Life
from zrpc.protocol.rrefs import SendAck, SendControl
from zrpc.runtime.peers import PeerBook
from zrpc.wire.envelope import Envelope, Kind, pack

logger = logging.getLogger(__name__)


class ControlPost:
    """Sends for one agent. `meet` is told of whoever is not in the cluster, as far as is known here."""

    def __init__(self, peers: PeerBook, me: Life, meet: Callable[[Life], None]) -> None:
        self._peers = peers
        self._me = me
        self._meet = meet

    def send(self, effect: SendControl | SendAck) -> None:
        """Send a control message, or an acknowledgement, if its receiver can be reached."""
        if isinstance(effect, SendAck):
            self._send(effect.to, Envelope(Kind.ACK, effect.seq))
            return
        message = effect.message
        owner = message.owner or (0, 0)
        self._send(
            effect.to,
            Envelope(int(message.kind), 0, rref=(*message.rref_id, *message.fork_id, effect.seq, effect.floor, *owner)),
        )

    def _send(self, to: Life, envelope: Envelope) -> None:
        peer = self._peers.find_life(to)
        if peer is None:
            self._meet(to)
            return
        envelope.sender, envelope.sender_incarnation = self._me
        envelope.receiver_incarnation = to.incarnation
        try:
            peer.send(pack(envelope))
        except Unavailable as error:
            logger.debug("control message to %s not sent: %s", peer, error)
