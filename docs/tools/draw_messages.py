"""Write the tables of docs/protocol.md from the code: kinds, codecs, messages, pickled names, numbers, limits, times.

    python docs/tools/draw_messages.py

One rule: what lies between a section's two markers is written here, and nowhere else; a test compares. Types and limits
of fields are what the field's own reader says when it is given something else, so they cannot differ from the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zrpc.broker.client import CLIENT_LIMITS
from zrpc.broker.server import BROKER_LIMITS
from zrpc.errors import FrameError
from zrpc.protocol import outbox, session, shutdown, strangers
from zrpc.protocol.membership import RegistryOptions
from zrpc.serialization import dtypes, failures, grammar, names
from zrpc.transport import router
from zrpc.wire import envelope, fields, messages, succession
from zrpc.wire.envelope import Codec, Extra, Kind
from zrpc.wire.limits import DEFAULT_LIMITS

PAGE = Path(__file__).resolve().parent.parent / "protocol.md"

# What no code says in one place. Kind: from and to, body, answer.
KINDS: Mapping[Kind, tuple[str, str, str]] = {
    Kind.CALL: (
        "caller to callee",
        "arguments, codec SCRIPT, BUILTIN or PYTHON",
        "REPLY, ERROR or NEED_CODE; nothing when its deadline has passed before the function starts",
    ),
    Kind.REMOTE_CALL: (
        "creator to owner",
        "as CALL; the header has the ids of the reference",
        "REPLY without a body once the function has returned or raised; ERROR or NEED_CODE; nothing when it comes "
        "again, or after its notice",
    ),
    Kind.REPLY: (
        "callee to caller",
        "the result in the codec of the call; codec NONE: accepted, there is no value",
        "",
    ),
    Kind.ERROR: ("callee to caller", "msgpack, see [Errors](#errors)", ""),
    Kind.CANCEL: (
        "caller to callee",
        "none; the message id is that of the call",
        "ERROR `Cancelled` in answer to the call, at once; nothing when the call has been answered, or is not known",
    ),
    Kind.NEED_CODE: (
        "callee to caller",
        "none",
        "the same message again, with the code as its last buffer and its index in the extra key CODE",
    ),
    Kind.RREF_FETCH: (
        "user to owner",
        "none; the header has the ids",
        "REPLY with the value when there is one, or with nil if the extra key TOUCH is set; ERROR",
    ),
    Kind.RREF_FORK_REQUEST: ("user to owner", "none", "ACK"),
    Kind.RREF_CHILD_ACCEPT: ("receiver of a fork to its parent", "none", "ACK"),
    Kind.RREF_USER_ACCEPT: ("", "", "reserved: the ACK of a FORK_REQUEST says it"),
    Kind.RREF_USER_DELETE: ("user to owner", "none", "ACK"),
    Kind.ACK: ("receiver of a control message to its sender", "none; the message id is the number that is settled", ""),
    Kind.RREF_FORK_NOTICE: ("parent to receiver of a fork", "none; the header names the owner too", "ACK"),
    Kind.RREF_CREATION_NOTICE: ("creator to owner", "none", "ACK"),
    Kind.BACKWARD: (
        "worker to worker",
        "gradients, marks or their end, codec SCRIPT; see [autograd](autograd.md#on-the-wire)",
        "REPLY when all that it has set off is answered; ERROR",
    ),
    Kind.CONTEXT_CLEANUP: ("worker to worker", "none; the header names the context", "REPLY without a value"),
    Kind.HELLO: (
        "process to broker",
        "Hello",
        "WELCOME, REFUSED, or PROGRESS while the group forms; none while the name's holder is taken for dead: "
        "HELLO is sent again",
    ),
    Kind.WELCOME: ("broker to member", "Welcome", ""),
    Kind.REFUSED: ("broker to process", "Refusal", ""),
    Kind.GOODBYE: ("member to broker, broker to members", "Goodbye", ""),
    Kind.MEMBERS: ("broker to members", "Members", "RESOLVE when a change before it is missing"),
    Kind.PROGRESS: (
        "member to broker; broker to those who wait",
        "Beat; GroupProgress",
        "none; CHALLENGE, MEMBERS or STOP when the beat shows that the member lacks it",
    ),
    Kind.CHALLENGE: ("broker to an unknown sender", "Challenge", "HELLO with the sender's id, incarnation and life"),
    Kind.RESOLVE: ("member to broker", "Resolve", "MEMBERS with what has changed, or with everybody"),
    Kind.SHUTDOWN: (
        "member to broker; broker to member",
        "ShutdownReport; ShutdownState",
        "SHUTDOWN: who is missing, a new round, or the release",
    ),
    Kind.STOP: ("tool to broker; broker to member", "Stop", "to a tool: ANSWER; a member shows it in its next beat"),
    Kind.QUERY: ("tool to broker", "Query", "ANSWER"),
    Kind.ANSWER: ("broker to tool; worker to who asked", "Answer; a msgpack map", ""),
    Kind.INSPECT: ("tool or worker to worker", "a msgpack map, see [Questions](#questions-to-a-worker)", "ANSWER"),
    Kind.SCALE: ("tool to broker", "Scale", "ANSWER"),
    Kind.FOLLOW: (
        "broker to broker",
        "Follow",
        "REPLICA, ELSEWHERE from who is not in charge either, or REFUSED when there is a standby already",
    ),
    Kind.REPLICA: ("primary to standby", "Replica", "FOLLOW"),
    Kind.VOTE: ("member to a broker that is not its own", "Vote", "CHALLENGE from who is in charge"),
    Kind.ELSEWHERE: ("standby to who asks it for what a primary does", "Elsewhere", ""),
    Kind.BATCH: ("", "", "reserved for several messages in one"),
}

CODECS: Mapping[Codec, str] = {
    Codec.NONE: "no body",
    Codec.SCRIPT: "a pickle of the small grammar: the bound arguments as a tuple, or a result",
    Codec.PYTHON: "any pickle, with a checksum: (callable or nil, arguments, keyword arguments), or a result",
    Codec.BUILTIN: "written and read as SCRIPT: (arguments, keyword arguments), or a result",
    Codec.MSGPACK: "a msgpack map",
}

NESTED: Mapping[str, str] = {
    "Roster": "bytes: a packed roster of rows of Member",
    "tuple[Gone, ...]": "bytes: a packed roster of rows of Gone; in RESOLVE an array of them",
    "tuple[Entry, ...]": "an array of rows of Entry",
    "dict[str, Any]": "of any plain values",
}
"""Types whose readers do not say all."""
POWERS: Mapping[str, str] = {str(2**n - 1): f"2^{n} - 1" for n in (64, 63, 31)}

TIMES: Sequence[tuple[str, float, str]] = (
    ("heartbeat interval", RegistryOptions().heartbeat_interval, "between two PROGRESS of a member; WELCOME says it"),
    ("death timeout", RegistryOptions().death_timeout, "of silence, after which a member is dead; WELCOME says it"),
    ("loss grace", RegistryOptions().loss_grace, "after a member's connection closed, until it is dead"),
    ("flush interval", RegistryOptions().flush_interval, "that changes of the membership are collected for MEMBERS"),
    ("progress interval", RegistryOptions().progress_interval, "between two PROGRESS to those who wait"),
    ("hello interval", session.HELLO_INTERVAL, "until an unanswered HELLO is sent again"),
    ("restart grace", session.RESTART_GRACE, "beyond the death timeout, for all to return to a restarted broker"),
    ("shutdown pace", shutdown.PACE, "between two rounds when the sums of calls are apart"),
    ("first retry", outbox.FIRST_RETRY, "until a control message is sent again; it doubles each time"),
    ("last retry", outbox.LAST_RETRY, "where the doubling ends"),
    ("unknown patience", strangers.PATIENCE, "until a worker that nobody announced is taken for lost"),
    ("ZeroMQ heartbeat, with the broker", router.HEARTBEATS_MS["broker"][0] / 1000, "between two ZMTP pings"),
    ("its timeout", router.HEARTBEATS_MS["broker"][1] / 1000, "until a connection without an answer is closed"),
    ("ZeroMQ heartbeat, between workers", router.HEARTBEATS_MS["member"][0] / 1000, "between two ZMTP pings"),
    ("its timeout", router.HEARTBEATS_MS["member"][1] / 1000, "until a connection without an answer is closed"),
    ("handshake", router.HANDSHAKE_MS / 1000, "that a peer has for ZMTP and CURVE"),
    ("reconnect", router.RECONNECT_MS / 1000, "until a lost connection is tried again; it doubles"),
    ("longest reconnect", router.RECONNECT_MAX_MS / 1000, "where that ends"),
)

LIMITS: Sequence[tuple[str, int, str]] = (
    ("message", DEFAULT_LIMITS.message_bytes, "bytes; option max_message_bytes"),
    ("header", DEFAULT_LIMITS.header_bytes, "bytes"),
    ("buffers in a message", DEFAULT_LIMITS.buffers, ""),
    ("TorchScript archive", DEFAULT_LIMITS.code_bytes, "bytes, packed or unpacked"),
    ("message to the broker", BROKER_LIMITS.message_bytes, "bytes; no buffers"),
    ("message from the broker", CLIENT_LIMITS.message_bytes, "bytes; no buffers"),
    ("header to or from the broker", BROKER_LIMITS.header_bytes, "bytes"),
    ("msgpack body to or from the broker", fields.MAX_BODY_BYTES, "bytes"),
    ("body in frame 0", envelope.INLINE_BODY_BYTES, "bytes; a larger one has a frame of its own"),
    ("buffer in frame 0", envelope.INLINE_BUFFER_BYTES, "bytes; a larger one has a frame of its own"),
    ("all buffers in frame 0", envelope.INLINE_TOTAL_BYTES, "bytes"),
    ("nesting of values in the SCRIPT codec", grammar.MAX_DEPTH, ""),
    ("text of an error", failures.MAX_TEXT, "characters"),
    ("traceback of an error", failures.MAX_TRACEBACK, "characters"),
    ("members of a cluster", RegistryOptions().max_members, ""),
    ("names in a PROGRESS or SHUTDOWN", messages.MAX_TOLD, "of each sort; the rest is a count"),
)


# ------------------------------------------------------------------------------------------- what is drawn


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def draw_kinds() -> str:
    """Kinds of message."""
    return table(("number", "kind", "from, to", "body", "answer"), ((int(k), k.name, *KINDS[k]) for k in sorted(Kind)))


def draw_codecs() -> str:
    """Codecs of bodies."""
    return table(("number", "codec", "body"), ((int(c), c.name, CODECS[c]) for c in Codec))


def draw_extras() -> str:
    """Keys of the header's last field, each with the text below it in the code."""
    said, name = {}, ""
    for node in ast.parse(inspect.getsource(Extra)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        elif isinstance(node, ast.Expr) and name:
            said[name] = " ".join(ast.literal_eval(node.value).split()).rstrip(".")
    return table(("key", "name", "meaning"), ((int(e), e.name, said[e.name]) for e in Extra))


def draw_names() -> str:
    """Names that stand in a pickle, and what they are called with."""
    rows = [
        (f"`{name}`", inspect.getdoc(function).rstrip("."))  # type: ignore[union-attr]
        for name, function in vars(names).items()
        if inspect.isfunction(function) and not name.startswith("_")
    ]
    return table((f"name in `{names.MODULE}`", "makes: with which arguments"), rows)


def draw_numbers() -> str:
    """Numbers of dtypes, layouts and memory formats."""
    kinds: Sequence[tuple[str, Mapping[int, str]]] = (
        ("dtype", {number: name for name, number in dtypes._DTYPE_NUMBERS.items()}),
        ("layout", dtypes._LAYOUT_NAMES),
        ("memory format", {n: str(f).removeprefix("torch.") for n, f in dtypes.MEMORY_FORMATS.items()}),
    )
    return table(
        ("", "number and name"),
        ((what, ", ".join(f"{number} {name}" for number, name in known.items())) for what, known in kinds),
    )


def draw_times() -> str:
    """Times of the protocol."""
    return table(("time", "seconds", "what"), ((name, f"{seconds:g}", what) for name, seconds, what in TIMES))


def draw_limits() -> str:
    """Limits of messages."""
    return table(("of", "limit", ""), ((name, f"{limit:,}", unit) for name, limit, unit in LIMITS))


def draw_messages() -> str:
    """The bodies of the messages between broker and members, with every field."""
    rows = [
        ("A row, that is an array in this order.", messages.Member),
        ("A row, that is an array in this order.", messages.Gone),
    ]
    parts = [_draw_class(cls, title) for title, cls in rows]
    both = set(messages.TO_BROKER.values()) & set(messages.TO_MEMBER.values())
    for direction, known in (("to the broker", messages.TO_BROKER), ("from the broker", messages.TO_MEMBER)):
        for cls in known.values():
            where = "to and from the broker" if cls in both else direction
            if direction == "from the broker" and cls in both:
                continue
            parts.append(_draw_class(cls, f"{cls.KIND.name}, {int(cls.KIND)}, {where}."))
    parts.append(_draw_class(succession.Entry, "A row, that is an array in this order."))
    for cls in (succession.Follow, succession.Replica, succession.Vote, succession.Elsewhere):
        parts.append(_draw_class(cls, f"{cls.KIND.name}, {int(cls.KIND)}."))
    return "\n\n".join(parts)


def _draw_class(cls: Any, title: str) -> str:
    text = " ".join((inspect.getdoc(cls) or "").split())
    rows = [(f"`{f.name}`", _describe(f), _default(f)) for f in dataclasses.fields(cls)]
    return f"#### {cls.__name__}\n\n{title} {text}\n\n" + table(("field", "value", "if absent"), rows)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else "empty"
    if isinstance(value, messages.Roster) or value == ():
        return "empty"
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "empty text"


def _describe(field: dataclasses.Field[Any]) -> str:
    """What a reader says that a value is not, when it is given what nobody takes."""
    told: list[str] = []
    for probe in (object(), [object()], {"key": object()}):
        said = _refusal(field.metadata["read"], probe)
        if said and not any(said in before for before in told):
            told.append(said)
    extra = NESTED.get(str(field.type))
    if extra is not None:
        told = [extra] if extra.startswith(("bytes", "an array")) else [*told, extra]
    if str(field.type).endswith("None"):
        told.append("or nil")
    text = "; ".join(told)
    for large, power in POWERS.items():
        text = text.replace(large, power)
    return text


def _refusal(read: Callable[[Any, str], Any], probe: object) -> str:
    try:
        read(probe, "it")
    except FrameError as error:
        return str(error).rpartition("it is not ")[2]
    return ""


SECTIONS: Mapping[str, Callable[[], str]] = {
    "kinds": draw_kinds,
    "codecs": draw_codecs,
    "extras": draw_extras,
    "names": draw_names,
    "numbers": draw_numbers,
    "messages": draw_messages,
    "times": draw_times,
    "limits": draw_limits,
}


def redraw(text: str) -> str:
    """A page with all its sections drawn anew."""
    for name, draw in SECTIONS.items():
        begin, end = f"<!-- drawn: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no section {name!r} between {begin!r} and {end!r}")
        text = f"{before}{begin}\n{draw()}\n\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(redraw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
