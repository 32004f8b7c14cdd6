"""Every parser of bytes that others send, as a function that a fuzzer can call, with inputs that are good to begin from.

One rule: a parser may take an input, or refuse it with an error of zrpc's tree. Anything else is a finding: another
exception, a wrong accept (what was taken cannot be what was sent), memory beyond the limit that the caller sets, a hang.
"""

from __future__ import annotations

import contextlib
import itertools
import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import torch
from fuzz_channels import WrongAccept, note_seeds, record_seeds, run_notes, run_records, run_streams, stream_seeds

from zrpc.errors import ZrpcError
from zrpc.protocol.rref_model import forks_from_numbers
from zrpc.protocol.rrefs import Fork, Peer
from zrpc.rendezvous.record import Record, own_keyring
from zrpc.runtime.inspection import read_map, write_map
from zrpc.runtime.progress import describe_calls, sentences
from zrpc.serialization.archives import canonical, content_hash
from zrpc.serialization.failures import decode_failure, encode_failure
from zrpc.serialization.grammar import check_body
from zrpc.serialization.pickler import Hooks, dumps_python, dumps_script, loads_python, loads_script
from zrpc.wire.envelope import Codec, Envelope, Kind, pack, unpack
from zrpc.wire.limits import Limits
from zrpc.wire.messages import read
from zrpc.wire.succession import BROKER_READS, MEMBER_READS, STANDBY_READS

LIMITS = Limits(message_bytes=1 << 20, header_bytes=1 << 16, buffers=64, code_bytes=1 << 20)
ARCHIVE_BYTES = 1 << 20
EXPANSION = 64
"""Values may be larger than their message by this factor: views of one storage, and a copy for each."""

OPCODES = """
    PROTO FRAME MEMOIZE BINGET LONG_BINGET STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    SHORT_BINUNICODE BINUNICODE STACK_GLOBAL REDUCE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 MARK TUPLE EMPTY_LIST APPEND
    APPENDS EMPTY_DICT SETITEM SETITEMS
"""
ALLOWED_OPCODES = frozenset(OPCODES.split())


@dataclass(frozen=True)
class Target:
    """`run` returns whether the input was taken; what it raises beside `ZrpcError` is a finding."""

    name: str
    seeds: tuple[bytes, ...]
    run: Callable[[bytes], bool]


def join(parts: list[Any]) -> bytes:
    """Some frames as one input."""
    return b"".join(struct.pack("<I", len(bytes(part))) + bytes(part) for part in parts)


def split(data: bytes) -> list[bytes]:
    """An input as some frames; what is left over is the last one."""
    parts, position = [], 0
    while position + 4 <= len(data) and len(parts) < 100:
        (size,) = struct.unpack_from("<I", data, position)
        parts.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return parts


def refused(parse: Callable[[], Any]) -> bool:
    try:
        parse()
    except ZrpcError:
        return True
    return False


# --------------------------------------------------------------------------------------------- envelopes

EXAMPLES = [
    Envelope(Kind.CALL, 7, 1, 99, 98, 1_000_000, Codec.SCRIPT, b"body", [b"buffer", b"x" * 9000], "a.b", b"h" * 32),
    Envelope(Kind.REPLY, 7, 2, 99, codec=Codec.PYTHON, body=b"z" * 70_000),
    Envelope(Kind.REMOTE_CALL, 1, 1, 2, 3, 4, Codec.PYTHON, b"", [], "m:f", None, (1, 2, 3, 4, 5, 6, 7, 8), (1, 2)),
    Envelope(Kind.INSPECT, 1, trace=bytes(24), extra={1: 2, 2: [1, 2, 3], 3: True}),
    Envelope(Kind.ACK, 1 << 63, -2),
]


def run_envelope(data: bytes) -> bool:
    frames = split(data)
    try:
        envelope = unpack(frames, LIMITS)
    except ZrpcError:
        return False
    size = sum(map(len, frames))
    if envelope.nbytes() > size or len(envelope.buffers) > LIMITS.buffers:
        raise WrongAccept(f"{envelope} of {size} bytes")
    try:
        again = unpack(pack(envelope, LIMITS), LIMITS)
    except OverflowError:  # msgpack reads what it does not write
        return True
    for name in Envelope.__slots__:
        if name not in ("body", "buffers", "extra") and getattr(again, name) != getattr(envelope, name):
            raise WrongAccept(f"{name}: {getattr(envelope, name)!r} became {getattr(again, name)!r}")
    return True


def run_messages(known: Any) -> Callable[[bytes], bool]:
    kinds = sorted(known)

    def run(data: bytes) -> bool:
        if not data:
            return False
        envelope = Envelope(kinds[data[0] % len(kinds)], codec=Codec.MSGPACK, body=data[1:])
        try:
            message = read(envelope, known)
        except ZrpcError:
            return False
        body = message.to_body()
        if read(Envelope(envelope.kind, codec=Codec.MSGPACK, body=body), known).to_body() != body:
            raise WrongAccept(f"{message} does not come back")
        return True

    return run


def seeds_of_messages(known: Any) -> tuple[bytes, ...]:
    """Bodies with every field, by the readers' own names; some are refused for their values, which is a start too."""
    samples: dict[str, Any] = {"name": "w", "address": "tcp://h:1", "cluster": "c", "error": "NameTaken", "why": "x"}
    found = []
    for index, kind in enumerate(sorted(known)):
        fields = known[kind].__dataclass_fields__
        values = {name: samples.get(name, 1) for name in fields}
        found.append(bytes([index]) + msgpack.packb(values))
        found.append(bytes([index]) + msgpack.packb({}))
        row = ["w", 1, 2, 0, "tcp://h:1", "", "up", 1, "h", "s"]
        roster = msgpack.packb([row])
        texts = {
            "members": roster,
            "up": roster,
            "gone": msgpack.packb([["w", 1, 2, "why"]]),
            "over": [["w", 1, 2, "why"]],
        }
        maps = {"statistics": {"calls": 1}, "fields": {"name": "w", "holder": "h"}, "data": {"a": [1, {"b": 2}]}}
        flags = dict.fromkeys(
            ("wait", "strict", "stopping", "full", "release", "draining", "in_charge", "lost", "answer"), False
        )
        lists = {"names": ["a"], "present": ["a"], "missing": ["b"]}
        lists["entries"] = [["w", 1, 2, 0, "up", 1, "tcp://h:1", "", 1, "h", "s", 0, False, False, "why"]]
        texts_of = {"message": "m", "standby": "tcp://h:2", "what": "status", "role": "r", "host": "h", "software": "s"}
        every = {**values, **texts, **maps, **flags, **lists, **texts_of}
        found.append(bytes([index]) + msgpack.packb({name: every[name] for name in fields}))
    return tuple(found)


# ---------------------------------------------------------------------------------------------- values


def make_values() -> list[Any]:
    """Some of each kind. torch warns of some of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _make_values()


def _make_values() -> list[Any]:
    base = torch.arange(12.0).reshape(3, 4)
    return [
        (torch.ones(3), 1, 2.5, "text", None, True, [1, 2], {"a": base, 1: (2,)}),
        (base, base[1:], base.t(), base[:, ::2]),
        (torch.zeros(0), torch.tensor(5), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.complex64)),
        (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.quantize_per_tensor(base, 0.1, 0, torch.qint8)),
        (torch.float32, torch.device("cpu"), torch.strided, torch.contiguous_format, torch.Size([1, 2]), 1j),
        (torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.complex64).conj(), -(1 << 70)),
        ([[[[1]]]], "x" * 300, {"k" * 300: [base] * 3}, (1 << 40, -1, 255, 256, 65536)),
    ]


PLAIN = (int, float, complex, str, bool, type(None), list, tuple, dict)
TORCH = (torch.Tensor, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


def check_value(value: Any, depth: int = 0) -> int:
    """Bytes of tensors in a value, each storage once; raises when there is something that TorchScript has no type for."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided and value.numel():
            with contextlib.suppress(NotImplementedError):  # torch has dtypes that it can do nothing with
                value.clone()  # reads every element: memory that is not its own would show
            return value.untyped_storage().nbytes()
        return 0
    kind = type(value)
    if callable(value) and str(getattr(value, "__module__", "")).startswith("zrpc.serialization."):
        return 0  # one of the codec's own names, not called: no TorchScript function takes it
    known = isinstance(value, (*PLAIN, *TORCH)) or kind.__module__ in ("zrpc.serialization.values", "enum")
    if not known and not hasattr(kind, "__members__"):
        raise WrongAccept(f"a {kind.__module__}.{kind.__qualname__}")
    if depth > 50:
        return 0
    if isinstance(value, dict):
        parts = itertools.chain(value, value.values())
    else:
        parts = iter(value) if isinstance(value, (list, tuple)) else iter(())
    return sum(check_value(part, depth + 1) for part in itertools.islice(parts, 1000))


NO_MODULES = Hooks(modules=False)


def run_script(data: bytes) -> bool:
    body, *buffers = split(data) or [b""]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loads_script(body, buffers, NO_MODULES)
    except ZrpcError:
        return False
    if check_value(value) > EXPANSION * (len(data) + 64):
        raise WrongAccept(f"{len(data)} bytes became {check_value(value)} bytes of tensors")
    return True


def run_python_head(data: bytes) -> bool:
    """The checksum stands before the pickle: what is damaged by chance does not get to it."""
    body, *buffers = split(data) or [b""]
    try:
        loads_python(body, buffers)
    except ZrpcError:
        return False
    return True


def run_grammar(data: bytes) -> bool:
    if refused(lambda: check_body(data)):
        return False
    try:
        found = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    except ValueError:
        return True  # its texts are not utf-8, or the like; the unpickler says so
    if not found <= ALLOWED_OPCODES:
        raise WrongAccept(f"{found - ALLOWED_OPCODES}")
    return True


# ----------------------------------------------------------------------------------------------- the rest


def run_failure(data: bytes) -> bool:
    if refused(lambda: decode_failure(data)):
        return False
    error = decode_failure(data)
    if not isinstance(error, Exception):
        raise WrongAccept(f"a {type(error).__name__} is to be raised")
    str(error)
    return True


def run_question(data: bytes) -> bool:
    try:
        question = read_map(Envelope(Kind.INSPECT, codec=Codec.MSGPACK, body=data))
    except ZrpcError:
        return False
    describe_calls(question, (1, 2), [], 0.0, lambda: 1.0)
    if len(sentences(question, 3)) != 3:
        raise WrongAccept("not a sentence for each")
    return True


def run_forks(data: bytes) -> bool:
    try:
        numbers = msgpack.unpackb(data)
    except Exception:
        return False
    if not isinstance(numbers, list) or refused(lambda: forks_from_numbers(numbers, Peer(1, 2))):
        return False
    if any(not 0 <= part < 1 << 63 for fork in forks_from_numbers(numbers, Peer(1, 2)) for part in fork.to_numbers()):
        raise WrongAccept("a number that is none")
    return True


def run_archive(data: bytes) -> bool:
    try:
        digest, packed = canonical(data, ARCHIVE_BYTES)
    except ZrpcError:
        return False
    if content_hash(packed, 2 * ARCHIVE_BYTES) != digest:
        raise WrongAccept("what was hashed is not what was packed")
    return True


def run_record(data: bytes) -> bool:
    record = Record.from_json(data)
    if record is None:
        return False
    own_keyring(record)
    return True


class _Small(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(1)


def targets() -> dict[str, Target]:
    """All targets, by name."""
    values = make_values()
    encoded = [dumps_script(value) for value in values]
    python = [dumps_python(value) for value in values[:2]]
    question = Envelope(Kind.INSPECT)
    write_map(question, {"what": "calls", "ids": [1, 2], "values": [None, [1, 2]]})
    answer = Envelope(Kind.ANSWER)
    told = {"state": "running", "seconds": 1.0, "stack": ["a"]}, {"state": "queued", "before": 1, "running": ["f"]}
    write_map(answer, {"calls": list(told), "idle": 1.0})
    fork = Fork((1, 2), (3, 4), Peer(5, 6), Peer(7, 8), 9)  # type: ignore[arg-type]
    archive = bytes(torch.jit.script(_Small())._c.save_to_buffer({}))
    made = [
        Target("envelope", tuple(join(list(pack(example))) for example in EXAMPLES), run_envelope),
        Target("to broker", seeds_of_messages(BROKER_READS), run_messages(BROKER_READS)),
        Target("to member", seeds_of_messages(MEMBER_READS), run_messages(MEMBER_READS)),
        Target("to standby", seeds_of_messages(STANDBY_READS), run_messages(STANDBY_READS)),
        Target("script", tuple(join([e.body, *e.buffers]) for e in encoded), run_script),
        Target("grammar", tuple(bytes(e.body) for e in encoded if e.body[:1] == b"\x80"), run_grammar),
        Target("python head", tuple(join([e.body, *e.buffers]) for e in python), run_python_head),
        Target("failure", (encode_failure(ValueError("x"), 1, "w"), encode_failure(KeyError(1), 2, "v")), run_failure),
        Target("question", (bytes(question.body), bytes(answer.body)), run_question),
        Target("forks", (msgpack.packb(fork.to_numbers() * 2), msgpack.packb([])), run_forks),
        Target("archive", (archive,), run_archive),
        Target("local records", record_seeds(), run_records),
        Target("shared memory", note_seeds(), run_notes),
        Target("streams", stream_seeds(), run_streams),
        Target("record", (Record("tcp://h:1", "h", "f", "/k", "00" * 32).to_json().encode(),), run_record),
    ]
    return {target.name: target for target in made}
