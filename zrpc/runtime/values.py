"""Values in envelopes: which codec writes and reads them, and the references they carry.

One rule: whatever happens to a message (it is sent, it cannot be, it comes too late, it cannot be read), the forks of
references in it are accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from zrpc.errors import CodecRefused, FrameError
from zrpc.ids import WorkerInfo
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.callables import Target
from zrpc.runtime.context import running
from zrpc.runtime.handles import Reference
from zrpc.runtime.recording import Contexts, Recorder, current_recorder, without_parameters
from zrpc.serialization import plainvalues
from zrpc.serialization.failures import decode_failure
from zrpc.serialization.pickler import Encoded, Hooks, dumps_python, dumps_script, loads_python, loads_script
from zrpc.wire.envelope import Codec, Envelope, Extra, Kind

CODEC_NAMES = {Codec.SCRIPT: "script", Codec.PYTHON: "python", Codec.BUILTIN: "builtin"}
_ROOTS: dict[Codec, str | tuple[str, ...]] = {
    Codec.SCRIPT: "args",
    Codec.BUILTIN: ("args", "kwargs"),
    Codec.PYTHON: ("function", "args", "kwargs"),
}
"""What errors call the parts of a call's value."""


class ForkBook(Protocol):
    """What happens to forks of references, once the message they are in has met its fate."""

    def take_back(self, forks: Sequence[int], to: WorkerKey) -> None:
        """They were made for a message to `to` that was not sent."""

    def delivered(self, forks: Sequence[int], to: WorkerKey) -> None:
        """They were made for a message to `to`, which has been answered."""

    def let_go(self, forks: Sequence[int], sender: WorkerKey) -> None:
        """They came in a message that is not going to be read."""


class Values:
    """Writes arguments and results, reads them, for one agent."""

    def __init__(self, codecs: Sequence[str], hooks: Hooks, forks: ForkBook) -> None:
        self._accepted = frozenset(codec for codec, name in CODEC_NAMES.items() if name in codecs)
        self._hooks = hooks
        self._forks = forks
        self.contexts: Contexts | None = None
        """The distributed autograd contexts, if there are such."""

    # ------------------------------------------------------------------------------------ calls

    def write_call(
        self,
        envelope: Envelope,
        to: WorkerKey,
        target: Target,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        expires: float | None,
    ) -> None:
        """Put a function and its arguments into an envelope."""
        envelope.function = target.name
        if target.script is not None:
            envelope.code = target.script.hash
            value: Any = target.script.bind(
                tuple(args), kwargs, lambda v: isinstance(v, Reference) and v.owner_life == to
            )
        elif target.codec is Codec.BUILTIN:
            value = (tuple(args), dict(kwargs))
        else:
            value = (target.func, tuple(args), dict(kwargs))
        if target.is_async:
            envelope.extra = {**(envelope.extra or {}), Extra.ASYNC: True}
        recorder = current_recorder()
        simple = None
        if target.codec is Codec.PYTHON and not kwargs:
            simple = plainvalues.dumps_call(target.func, value[1])
        if simple is not None:
            envelope.codec = target.codec
            envelope.body, envelope.buffers = simple
        else:
            self.write(envelope, target.codec, value, to, expires, _ROOTS[target.codec], recorder)
        if recorder is not None and envelope.autograd is None and target.codec is not Codec.BUILTIN:
            # What the function returns may require grad where no argument does: its own parameters, for example.
            number = recorder.record_sent((), to)
            envelope.autograd = None if number is None else (recorder.context_id, number)

    def check_accepts(self, codec: int, function: str) -> None:
        """Raise `CodecRefused` if this worker does not take calls of that codec: before anything of them is read."""
        if codec not in self._accepted:
            raise CodecRefused(
                f"this worker does not accept calls of the {codec_name(codec)} codec (calling {function}); "
                f"it accepts {', '.join(sorted(CODEC_NAMES[c] for c in self._accepted)) or 'none'}"
            )

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
                f"worker {sender.name!r} answered in the {codec_name(envelope.codec)} codec, "
                "which this worker does not accept"
            )
        if envelope.autograd is None or self.contexts is None:
            return self.read(envelope)
        return self.read(envelope, self.contexts.find(envelope.autograd[0]))

    def join(self, envelope: Envelope) -> Recorder | None:
        """The distributed autograd context that a call came in."""
        if envelope.autograd is None or self.contexts is None:
            return None
        return self.contexts.join(envelope.autograd[0], (envelope.sender, envelope.sender_incarnation))

    # ------------------------------------------------------------------------------------ values

    def write(
        self,
        envelope: Envelope,
        codec: int,
        value: Any,
        to: WorkerKey,
        expires: float | None,
        root: str | tuple[str, ...] = "result",
        recorder: Recorder | None = None,
    ) -> None:
        """Put a value into an envelope for worker `to`, of use until `expires`, recorded in a context if there is one.

        Raises `EncodeError`, which calls the value (or the parts of a tuple) `root`; no fork is left then.
        """
        simple = plainvalues.dumps(value)
        if simple is not None:  # without references, and without what would be recorded
            envelope.codec = codec
            envelope.body, envelope.buffers = simple
            return
        saved = running.destination, running.forks, running.expires
        forks: list[int] = []
        recorded: list[torch.Tensor] | None = None if recorder is None else []
        running.destination, running.forks, running.expires = to, forks, expires
        try:
            encoded: Encoded
            if codec == Codec.PYTHON:
                if recorder is not None:
                    value = without_parameters(value)
                encoded = dumps_python(value, self._hooks, root, recorded)
            else:
                encoded = dumps_script(value, self._hooks, root, recorded)
            if recorder is not None and recorded:
                number = recorder.record_sent(recorded, to)
                envelope.autograd = None if number is None else (recorder.context_id, number)
        except BaseException:
            if forks:
                self._forks.take_back(forks, to)
            raise
        finally:
            running.destination, running.forks, running.expires = saved
        if forks:
            envelope.extra = {**(envelope.extra or {}), Extra.FORKS: forks}
        envelope.codec = codec
        envelope.body, envelope.buffers = encoded

    def read(self, envelope: Envelope, recorder: Recorder | None = None) -> Any:
        """The value in an envelope; its recorded tensors become part of a context's graph if there is one."""
        body = envelope.body
        if len(body) > 2 and body[0] == plainvalues.PLAIN:  # without references, and without what would be recorded
            try:
                if body[1] != plainvalues.CALL:
                    return plainvalues.loads(body, envelope.buffers)
                load = loads_python if envelope.codec == Codec.PYTHON else loads_script  # which refuses it
                return load(body, envelope.buffers, self._hooks)
            except BaseException:
                self.drop(envelope)
                raise
        saved = running.origin
        origin = running.origin = (envelope.sender, envelope.sender_incarnation)
        received: list[torch.Tensor] | None = None if recorder is None else []
        try:
            load = loads_python if envelope.codec == Codec.PYTHON else loads_script
            value = load(envelope.body, envelope.buffers, self._hooks, received)
            if received and recorder is not None and envelope.autograd is not None:
                recorder.record_received(envelope.autograd[1], origin, received)
            return value
        except BaseException:
            self.drop(envelope)
            raise
        finally:
            running.origin = saved

    # ------------------------------------------------------------------------------------ forks

    def take_back(self, envelope: Envelope, to: WorkerKey) -> None:
        """The envelope will not be sent."""
        forks = forks_of(envelope)
        if forks:
            self._forks.take_back(forks, to)

    def delivered(self, envelope: Envelope, to: WorkerKey) -> None:
        """The envelope was answered by its receiver."""
        if envelope.extra is not None:
            forks = forks_of(envelope)
            if forks:
                self._forks.delivered(forks, to)

    def drop(self, envelope: Envelope) -> None:
        """The envelope will not be read."""
        forks = forks_of(envelope)
        if forks:
            self._forks.let_go(forks, (envelope.sender, envelope.sender_incarnation))


def codec_name(codec: int) -> str:
    """The name of a codec, as people configure it; its number if it has none."""
    names = {int(known): name for known, name in CODEC_NAMES.items()}
    return names.get(int(codec), str(int(codec)))


def forks_of(envelope: Envelope) -> list[int]:
    """The numbers of the forks that an envelope carries, as they are in its header."""
    found = None if envelope.extra is None else envelope.extra.get(Extra.FORKS)
    if found is None:
        return []
    if not isinstance(found, list):
        raise FrameError("the forks in the header are not a list of ids")
    return found
