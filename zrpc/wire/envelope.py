"""The envelope: what every zrpc message looks like on the wire.

One rule: every field's bounds are checked before the field is used; a frame that breaks one raises `FrameError`.

A message is one or more ZeroMQ frames (after the routing id that a ROUTER sees):

    frame 0      | 'Z' | version u8 | flags u16 | sizes of what, about and body, u32 each | message id u64 | time left u64 |
                 | check u16 |
                 | trace, if flag TRACED is set | what | about | body | inline buffers |
    frame 1..n   the buffers that are not in frame 0, in order (before them the body, if flag BODY_APART is set)

Over ZeroMQ a large message goes in pieces, and is put together again before it is read here: see `streams`.

Integers are little-endian. The message id is unique to the sender's incarnation; a reply carries the id of its call. The
time left is microseconds until the deadline when the message was sent, 0 for no deadline. A small message is one frame:
measured on a CURVE connection, three frames cost 20 to 50 microseconds and half the message rate.

The trace is the trace id (16 bytes) and the span id (8 bytes) of the sender's side, as in a W3C trace parent.

The header is two msgpack arrays. *What* is the same for all calls of a function with arguments of the same sizes, so it is
checked and read once, and known again by its bytes:

    0  kind                  Kind
    1  sender id             worker id, -1 the broker, -2 not yet given
    2  sender incarnation    u63; 0 not yet given
    3  receiver incarnation  u63; 0 any. A receiver of another incarnation refuses the message
    4  codec                 Codec of the body
    5  buffers               nil, or [place, size, place, size, ...]; place 0 inline after the body, 1 in frames of its own
    6  function              nil, or the name of the function: qualified name, or module:qualified name
    7  code                  nil, or the content hash of the TorchScript code (32 bytes)

*About* is the message's own, and left out (its size is 0) where it has nothing to say:

    0  rref                  nil, or eight ids: RRefId (2), ForkId (2), number and floor in the control channel, owner (2)
    1  autograd              nil, or [context id, message id]
    2  extra                 nil, or a map from small integers (Extra) to values; unknown keys are ignored

A later version adds kinds, places and extra keys; it changes the version byte only when an old reader would misread it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

import msgpack

from zrpc.errors import FrameError, LimitExceeded, VersionMismatch
from zrpc.wire.limits import DEFAULT_LIMITS, Limits

Buffer = bytes | bytearray | memoryview
"""Bytes that can be sent as they are."""

_packb = msgpack.packb
_unpackb = msgpack.unpackb

MAGIC: Final = 0x5A
VERSION: Final = 1
_PREAMBLE = struct.Struct("<BBHIIIQQH")
PREAMBLE_BYTES: Final = _PREAMBLE.size
BODY_APART: Final = 1
CHECK: Final = 65521
"""A prime: the check of a preamble is (message id + 3 * time left) modulo this. No change of a single byte escapes it. A
damaged id would otherwise be believed: as that of a call far ahead, it makes repetitions of all that come after it."""
TRACED: Final = 2
TRACE_BYTES: Final = 24

INLINE_BODY_BYTES: Final = 64 * 1024
"""A body up to this size travels in frame 0: below 64 KiB ZeroMQ copies every frame anyhow."""
INLINE_BUFFER_BYTES: Final = 8 * 1024
"""A buffer up to this size travels in frame 0."""
INLINE_TOTAL_BYTES: Final = 64 * 1024
"""All buffers in frame 0 together."""

PLACE_INLINE: Final = 0
PLACE_FRAME: Final = 1

KNOWN_BYTES: Final = 512
"""What is in a header up to this size is remembered,"""
KNOWN: Final = 1024
"""for the last so many that were different."""

RREF_NUMBERS: Final = 8
"""Integers in the header's rref field; those that a kind of message has no use for are 0."""
_MAX_U63: Final = (1 << 63) - 1


class Kind(IntEnum):
    """What a message is. The number is the wire's; never reuse one."""

    CALL = 1
    REMOTE_CALL = 2
    REPLY = 3
    ERROR = 4
    CANCEL = 5
    NEED_CODE = 6

    RREF_FETCH = 10
    RREF_FORK_REQUEST = 11
    RREF_CHILD_ACCEPT = 12
    RREF_USER_ACCEPT = 13
    RREF_USER_DELETE = 14
    ACK = 15
    RREF_FORK_NOTICE = 16
    RREF_CREATION_NOTICE = 17

    BACKWARD = 20
    CONTEXT_CLEANUP = 21

    HELLO = 30
    WELCOME = 31
    REFUSED = 32
    GOODBYE = 33
    MEMBERS = 34
    PROGRESS = 35
    CHALLENGE = 36
    RESOLVE = 37
    SHUTDOWN = 38
    STOP = 39
    QUERY = 40
    ANSWER = 41
    INSPECT = 42
    SCALE = 43
    FOLLOW = 44
    REPLICA = 45
    VOTE = 46
    ELSEWHERE = 47

    BATCH = 50


class Codec(IntEnum):
    """How a body is written."""

    NONE = 0
    SCRIPT = 1
    PYTHON = 2
    BUILTIN = 3
    MSGPACK = 4


class Extra(IntEnum):
    """Keys of the header's last field."""

    CODE = 1
    """The TorchScript archive that the receiver asked for; the value is the index of its buffer."""
    FORKS = 2
    """Forks of references carried in the body: a flat list, seven integers each (see `protocol.rref_model`)."""
    ASYNC = 3
    """True: the function returns a future; the reply is sent when that is complete."""
    TOUCH = 4
    """True, in a fetch: the asker wants to know when the value is there, and not the value."""
    PROFILE = 5
    """In a call, True: the caller's profiler is on. In its reply: the index of the buffer with the callee's events."""
    MORE = 6
    """In a message of the reference protocol: further ones, a list of [kind, message id, the rref field's eight ids]."""


class Envelope:
    """One message, decoded. `buffers` and `body` may be views of the received frames: copy what must outlive them."""

    __slots__ = (
        "autograd",
        "body",
        "buffers",
        "code",
        "codec",
        "extra",
        "function",
        "kind",
        "message_id",
        "receiver_incarnation",
        "rref",
        "sender",
        "sender_incarnation",
        "size",
        "span",
        "time_left_us",
        "trace",
    )

    def __init__(
        self,
        kind: int,
        message_id: int = 0,
        sender: int = 0,
        sender_incarnation: int = 0,
        receiver_incarnation: int = 0,
        time_left_us: int = 0,
        codec: int = Codec.NONE,
        body: Buffer = b"",
        buffers: Sequence[Buffer] = (),
        function: str | None = None,
        code: bytes | None = None,
        rref: tuple[int, ...] | None = None,
        autograd: tuple[int, int] | None = None,
        trace: bytes | None = None,
        extra: dict[int, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.message_id = message_id
        self.sender = sender
        self.sender_incarnation = sender_incarnation
        self.receiver_incarnation = receiver_incarnation
        self.time_left_us = time_left_us
        self.codec = codec
        self.body = body
        self.buffers = buffers
        self.function = function
        self.code = code
        self.rref = rref
        self.autograd = autograd
        self.trace = trace
        self.extra = extra
        self.size = -1  # bytes of body and buffers, once packed or unpacked
        self.span: list[Any] | None = None  # what a tracer keeps of the message; not sent

    def __repr__(self) -> str:
        kind = Kind(self.kind).name if self.kind in Kind._value2member_map_ else str(self.kind)
        what = f" {self.function}" if self.function else ""
        sizes = f"body={_nbytes(self.body)} buffers={len(self.buffers)}"
        return f"<Envelope {kind} id={self.message_id} from={self.sender}/{self.sender_incarnation}{what} {sizes}>"

    def nbytes(self) -> int:
        """Bytes of body and buffers."""
        return self.size if self.size >= 0 else _nbytes(self.body) + sum(map(_nbytes, self.buffers))


def _nbytes(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def pack(envelope: Envelope, limits: Limits = DEFAULT_LIMITS) -> list[Buffer]:
    """The frames of a message. Large buffers are passed on as they are, not copied.

    Raises `LimitExceeded` when the message is over a limit: nothing has been sent then.
    """
    return pack_sized(envelope, limits)[0]


def pack_sized(envelope: Envelope, limits: Limits = DEFAULT_LIMITS) -> tuple[list[Buffer], int]:
    """As `pack`, with the size of all frames."""
    body = envelope.body
    body_size = len(body) if type(body) is bytes else _nbytes(body)
    frames: list[Buffer] = [b""]
    flags = 0
    if body_size > INLINE_BODY_BYTES:
        flags = BODY_APART
        frames.append(body)
    descriptors: list[int] | None = None
    inline: list[Buffer] = []
    total = body_size
    if envelope.buffers:
        descriptors = []
        room = INLINE_TOTAL_BYTES
        for buffer in envelope.buffers:
            size = len(buffer) if type(buffer) is bytes else _nbytes(buffer)
            total += size
            if size <= INLINE_BUFFER_BYTES and size <= room:
                room -= size
                inline.append(buffer)
                descriptors += (PLACE_INLINE, size)
            else:
                frames.append(buffer)
                descriptors += (PLACE_FRAME, size)
        if len(envelope.buffers) > limits.buffers:
            raise LimitExceeded("the number of buffers in a message", len(envelope.buffers), limits.buffers)
    if total > limits.message_bytes:
        raise LimitExceeded(
            "a message", total, limits.message_bytes, "Raise max_message_bytes on both sides, or send it in parts."
        )
    what = _packb(
        (
            envelope.kind,
            envelope.sender,
            envelope.sender_incarnation,
            envelope.receiver_incarnation,
            envelope.codec,
            descriptors,
            envelope.function,
            envelope.code,
        )
    )
    about = b""
    if envelope.rref is not None or envelope.autograd is not None or envelope.extra is not None:
        about = _packb((envelope.rref, envelope.autograd, envelope.extra))
    header_size = len(what) + len(about)
    if header_size > limits.header_bytes:
        raise LimitExceeded("the header of a message", header_size, limits.header_bytes)
    trace = envelope.trace
    if trace is None:
        trace = b""
    else:
        flags |= TRACED
    message_id, left = envelope.message_id, envelope.time_left_us
    preamble = _PREAMBLE.pack(
        MAGIC, VERSION, flags, len(what), len(about), body_size, message_id, left, (message_id + 3 * left) % CHECK
    )
    if flags & BODY_APART:
        frames[0] = b"".join((preamble, trace, what, about, *inline))
    else:
        frames[0] = b"".join((preamble, trace, what, about, body, *inline))
    envelope.size = total
    return frames, PREAMBLE_BYTES + len(trace) + header_size + total


def _take_frame(frames: Sequence[Any], index: int, size: int, what: str) -> memoryview:
    """The frame of that number, if it has the size that its descriptor says."""
    if index >= len(frames):
        raise _fail(f"a frame of {what} is missing")
    view = memoryview(frames[index]).cast("B")
    if view.nbytes != size:
        raise _fail(f"{what} is {view.nbytes} bytes, its descriptor says {size}")
    return view


def _fail(why: str) -> FrameError:
    return FrameError(f"not a zrpc message: {why}")


def _is_uint(value: object, top: int) -> bool:
    return type(value) is int and 0 <= value <= top


_What = tuple[int, int, int, int, int, tuple[tuple[int, int], ...], int, str | None, bytes | None]
"""kind, sender, its incarnation, the receiver's, codec, the buffers' places and sizes, their size, function, code."""


def _read_what(data: bytes) -> _What:
    """Check the type and range of every field of a header's first part."""
    fields = _read_array(data, 8)
    kind, sender, sender_inc, receiver_inc, codec, descriptors, function, code = fields[:8]
    if not _is_uint(kind, 255):
        raise _fail("kind is not a number below 256")
    if type(sender) is not int or not -2 <= sender <= _MAX_U63:
        raise _fail("sender id is not a worker id")
    if not (_is_uint(sender_inc, _MAX_U63) and _is_uint(receiver_inc, _MAX_U63)):
        raise _fail("incarnation is not a u63")
    if not _is_uint(codec, 255):
        raise _fail("codec is not a number below 256")
    if function is not None and (type(function) is not str or len(function) > 4096):
        raise _fail("function is not a name of at most 4096 characters")
    if code is not None and (type(code) is not bytes or len(code) != 32):
        raise _fail("code hash is not 32 bytes")
    places: list[tuple[int, int]] = []
    if descriptors is not None:
        if type(descriptors) is not list or len(descriptors) % 2:
            raise _fail("buffer descriptors are not an array of pairs")
        for place, size in zip(descriptors[::2], descriptors[1::2], strict=True):
            if type(place) is not int or place not in (PLACE_INLINE, PLACE_FRAME):
                raise _fail(f"unknown place {place!r:.80} of a buffer")
            if not _is_uint(size, _MAX_U63):
                raise _fail("a buffer's size is not a number")
            places.append((place, size))
    total = sum(size for _, size in places)
    return kind, sender, sender_inc, receiver_inc, codec, tuple(places), total, function, code


_read_known = functools.lru_cache(KNOWN)(_read_what)


def _read_about(data: memoryview) -> list[Any]:
    """The same of its second part."""
    fields = _read_array(data, 3)
    rref, autograd, extra = fields[:3]
    if rref is not None:
        _check_ints(rref, RREF_NUMBERS, "rref")
    if autograd is not None:
        _check_ints(autograd, 2, "autograd")
    if extra is not None and type(extra) is not dict:
        raise _fail("extra is not a map")
    return fields


def _read_array(data: bytes | memoryview, count: int) -> list[Any]:
    try:
        fields = _unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise _fail(f"the header is not msgpack ({type(error).__name__})") from None
    if type(fields) is not list or len(fields) < count:
        raise _fail(f"a part of the header is not an array of {count} fields")
    return fields


def _check_ints(values: object, count: int, what: str) -> None:
    if type(values) is not list or len(values) != count:
        raise _fail(f"{what} is not {count} ids")
    for value in values:
        if type(value) is not int or not 0 <= value <= _MAX_U63:
            raise _fail(f"{what} is not {count} ids")


def unpack(frames: Sequence[Any], limits: Limits = DEFAULT_LIMITS) -> Envelope:
    """The message in some frames (bytes-like; without the routing id).

    Raises `FrameError` for anything that is not a whole, well-formed message, `VersionMismatch` for another version.
    The body and the buffers of the result are views of the frames.
    """
    if not frames:
        raise _fail("no frame")
    first = memoryview(frames[0])
    end = first.nbytes
    if end < PREAMBLE_BYTES:
        raise _fail(f"{end} bytes are too few")
    magic, version, flags, what_size, about_size, body_size, message_id, left, check = _PREAMBLE.unpack_from(first)
    if magic != MAGIC:
        raise _fail(f"it begins with byte {magic:#x}")
    if version != VERSION:
        raise VersionMismatch(version, VERSION)
    if flags & ~(BODY_APART | TRACED):
        raise _fail(f"unknown flags {flags:#x}")
    before_what = PREAMBLE_BYTES + TRACE_BYTES if flags & TRACED else PREAMBLE_BYTES
    after_what = before_what + what_size
    position = after_what + about_size
    if what_size + about_size > limits.header_bytes or position > end:
        raise _fail(f"a header of {what_size + about_size} bytes does not fit")
    if body_size > limits.message_bytes:
        raise _fail(f"a body of {body_size} bytes, over the limit of {limits.message_bytes}")
    if left > _MAX_U63:
        raise _fail("time left is not a u63")
    if check != (message_id + 3 * left) % CHECK:
        raise _fail("its id and time left are damaged")
    read = _read_known if what_size <= KNOWN_BYTES else _read_what
    known = read(bytes(first[before_what:after_what]))
    kind, sender, sender_inc, receiver_inc, codec, places, size, function, code = known
    next_frame = 1
    body: memoryview
    if flags & BODY_APART:
        body = _take_frame(frames, next_frame, body_size, "the body")
        next_frame += 1
    else:
        start, position = position, position + body_size
        if position > end:
            raise _fail(f"a body of {body_size} bytes does not fit")
        body = first[start:position]
    buffers: list[memoryview] = []
    if places:
        if len(places) > limits.buffers or size > limits.message_bytes:
            raise _fail(
                f"{len(places)} buffers of {size} bytes, over a limit ({limits.buffers}, {limits.message_bytes})"
            )
        for place, length in places:
            if place == PLACE_INLINE:
                start, position = position, position + length
                if position > end:
                    raise _fail(f"an inline buffer of {length} bytes does not fit")
                buffers.append(first[start:position])
            else:
                buffers.append(_take_frame(frames, next_frame, length, "a buffer"))
                next_frame += 1
    if position != end or next_frame != len(frames):
        raise _fail("bytes are left over")
    envelope = Envelope(kind, message_id, sender, sender_inc, receiver_inc, left, codec, body, buffers, function, code)
    envelope.size = body_size + size
    if flags & TRACED:
        envelope.trace = bytes(first[PREAMBLE_BYTES:before_what])
    if about_size:
        rref, autograd, envelope.extra, *_ = _read_about(first[after_what : after_what + about_size])
        envelope.rref = None if rref is None else tuple(rref)
        envelope.autograd = None if autograd is None else tuple(autograd)
    return envelope
