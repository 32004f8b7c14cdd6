"""The limits that every decoder checks before it trusts a number from the wire."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one message. Sizes are bytes; a message over a bound is refused, whichever side it is found on."""

    message_bytes: int = 8192 * MIB
    """The whole message: header, body and buffers. 8 GiB."""
    header_bytes: int = MIB
    """The header, with the descriptors of the buffers. 64 bytes a buffer leave room for 10,000 of them."""
    buffers: int = 65_536
    """Buffers (tensor storages and the like) in one message."""
    code_bytes: int = 64 * MIB
    """A TorchScript archive that travels with a call."""


DEFAULT_LIMITS = Limits()
