"""Values in envelopes: which codec writes and reads them, and the references they carry.

One rule: whatever happens to a message (it is sent, it cannot be, it comes too late, it cannot be read), the forks of
references in it are accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from zrpc.errors import CodecRefused, FrameError
from zrpc.ids import WorkerInfo
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.callables import Target
from zrpc.runtime.context import running
from zrpc.serialization.failures import decode_failure
from zrpc.serialization.pickler import Encoded, Hooks, dumps_python, dumps_script, loads_python, loads_script
from zrpc.wire.envelope import Codec, Envelope, Extra, Kind

CODEC_NAMES = {Codec.SCRIPT: "script", Codec.PYTHON: "python", Codec.BUILTIN: "builtin"}


class ForkBook(Protocol):
    """What happens to forks of references, once the message they are in has met its fate."""

    def take_back(self, forks: Sequence[int]) -> None:
        """They were made for a message that was not sent."""

    def let_go(self, forks: Sequence[int], sender: int) -> None:
        """They came in a message that is not going to be read."""


class Values:
    """Writes arguments and results, reads them, for one agent."""

    def __init__(self, codecs: Sequence[str], hooks: Hooks, forks: ForkBook) -> None:
        self._accepted = frozenset(codec for codec, name in CODEC_NAMES.items() if name in codecs)
        self._hooks = hooks
        self._forks = forks

    # ------------------------------------------------------------------------------------ calls

    def write_call(
        self, envelope: Envelope, to: WorkerKey, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Put a function and its arguments into an envelope."""
        envelope.function = target.name
        if target.script is not None:
            envelope.code = target.script.hash
            value: Any = target.script.bind(tuple(args), dict(kwargs))
        elif target.codec is Codec.BUILTIN:
            value = (tuple(args), dict(kwargs))
        else:
            value = (target.func, tuple(args), dict(kwargs))
        if target.is_async:
            envelope.extra = {Extra.ASYNC: True}
        self.write(envelope, target.codec, value, to)

    def read_call(self, envelope: Envelope) -> Any:
        """The value that `write_call` put in. Raises `CodecRefused`, before a byte is read."""
        if envelope.codec not in self._accepted:
            self.drop(envelope)
            name = CODEC_NAMES.get(Codec(envelope.codec)) if envelope.codec in Codec._value2member_map_ else None
            raise CodecRefused(
                f"this worker does not accept calls of the {name or envelope.codec} codec (calling {envelope.function}); "
                f"it accepts {', '.join(sorted(CODEC_NAMES[c] for c in self._accepted)) or 'none'}"
            )
        return self.read(envelope)

    def read_reply(self, envelope: Envelope, sender: WorkerInfo) -> Any:
        """The result in a reply; raises the error that it carries."""
        if envelope.kind == Kind.ERROR:
            raise decode_failure(bytes(envelope.body))
        if envelope.kind != Kind.REPLY:
            raise FrameError(f"worker {sender.name!r} answered with a message of kind {envelope.kind}")
        if envelope.codec == Codec.NONE:
            return None
        if envelope.codec not in self._accepted:
            self.drop(envelope)
            raise CodecRefused(
                f"worker {sender.name!r} answered in the {CODEC_NAMES.get(Codec(envelope.codec))} codec, "
                "which this worker does not accept"
            )
        return self.read(envelope)

    # ------------------------------------------------------------------------------------ values

    def write(self, envelope: Envelope, codec: Codec, value: Any, to: WorkerKey) -> None:
        """Put a value into an envelope for worker `to`. Raises `EncodeError`; no fork is left then."""
        saved = running.destination, running.forks
        running.destination, running.forks = to, None
        try:
            encoded: Encoded
            if codec is Codec.PYTHON:
                encoded = dumps_python(value, self._hooks)
            else:
                encoded = dumps_script(value, self._hooks)
        except BaseException:
            if running.forks:
                self._forks.take_back(running.forks)
            raise
        else:
            if running.forks:
                envelope.extra = {**(envelope.extra or {}), Extra.FORKS: running.forks}
        finally:
            running.destination, running.forks = saved
        envelope.codec = codec
        envelope.body, envelope.buffers = encoded

    def read(self, envelope: Envelope) -> Any:
        """The value in an envelope."""
        saved = running.origin
        running.origin = envelope.sender
        try:
            if envelope.codec == Codec.PYTHON:
                return loads_python(envelope.body, envelope.buffers, self._hooks)
            return loads_script(envelope.body, envelope.buffers, self._hooks)
        except BaseException:
            self.drop(envelope)
            raise
        finally:
            running.origin = saved

    # ------------------------------------------------------------------------------------ forks

    def take_back(self, envelope: Envelope) -> None:
        """The envelope will not be sent."""
        forks = forks_of(envelope)
        if forks:
            self._forks.take_back(forks)

    def drop(self, envelope: Envelope) -> None:
        """The envelope will not be read."""
        forks = forks_of(envelope)
        if forks:
            self._forks.let_go(forks, envelope.sender)


def forks_of(envelope: Envelope) -> list[int]:
    """The forks that an envelope carries, four numbers each. Raises `FrameError` when they are not."""
    if envelope.extra is None:
        return []
    forks = envelope.extra.get(Extra.FORKS)
    if forks is None:
        return []
    if not isinstance(forks, list) or len(forks) % 4 or not all(type(n) is int and 0 <= n < 1 << 63 for n in forks):
        raise FrameError("the forks in the header are not groups of four ids")
    return forks


