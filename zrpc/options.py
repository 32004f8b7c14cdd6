"""The options of one agent: what `init_rpc` runs with when nothing else is said.

One rule: plain values with defaults, no parsing here (the launcher's schema, `zrpc.config`, checks what people write) and
nothing read from the environment but in `from_environment`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zrpc.errors import ConfigError
from zrpc.wire.limits import DEFAULT_LIMITS, Limits

DEFAULT_RPC_TIMEOUT = 60.0
"""Seconds; torch's default. 0 means none."""
DEFAULT_NUM_WORKER_THREADS = 16
"""torch's default: user functions that run at once on a worker."""
DEFAULT_INIT_TIMEOUT = 120.0
"""Seconds to find the broker and wait for the group."""
MAX_SPIN = 0.001
"""Seconds: who looks for longer only keeps a core from others."""

_ANY = 1 << 62
_NUMBERS = (
    ("max_message_bytes", 1024, _ANY),
    ("max_message_tensors", 1, _ANY),
    ("max_code_bytes", 0, _ANY),
    ("max_nesting", 1, 1000),
    ("max_pending_calls", 1, _ANY),
    ("max_pending_bytes", 1, _ANY),
    ("shared_memory_bytes", 0, _ANY),
)
CODECS = ("script", "python", "builtin")


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What an agent may be told. Times are seconds, sizes bytes."""

    rpc_timeout: float = DEFAULT_RPC_TIMEOUT
    """Deadline of a call that names none; 0 for no deadline."""
    num_worker_threads: int = DEFAULT_NUM_WORKER_THREADS
    """User functions that run at once."""
    init_timeout: float = DEFAULT_INIT_TIMEOUT
    """How long `init_rpc` looks for the broker and waits for its group."""
    bind: str = "tcp://127.0.0.1:0"
    """The address that other workers reach this one at; port 0 for any free one."""
    advertise: str = ""
    """The address told to others when it is not the bound one (behind NAT, or bound to 0.0.0.0)."""
    codecs: tuple[str, ...] = CODECS
    """The kinds of call that are accepted: 'script' (TorchScript), 'python' (pickles!), 'builtin' (torch operators)."""
    allow: tuple[str, ...] = ()
    """Names of the functions that may be called here, or patterns such as 'mymodule:*' or 'aten::*'; none for all."""
    accept_code: bool = True
    """Whether TorchScript code that a caller sends is taken; if not, only functions that were here at start are run."""
    code_cache_bytes: int = 256 << 20
    """How much received TorchScript code is kept."""
    max_message_bytes: int = DEFAULT_LIMITS.message_bytes
    """A larger message is refused, on either side."""
    max_message_tensors: int = DEFAULT_LIMITS.buffers
    """A message with more tensor storages is refused, on either side."""
    max_code_bytes: int = DEFAULT_LIMITS.code_bytes
    """A larger TorchScript archive is refused."""
    max_nesting: int = 1000
    """Values of TorchScript calls that are nested deeper are refused; no more than 1000, which the C stack bears."""
    max_pending_calls: int = 65_536
    """Calls of one caller that may be under way here; more are refused."""
    max_pending_bytes: int = 1 << 30
    """Bytes of asynchronous calls to one worker that wait for their replies; one call may be larger. Twice that to all."""
    when_full: str = "block"
    """What a call does that would be more: 'block' until there is room (or its deadline), or 'fail' with `Overloaded`."""
    security: bool = True
    """CURVE encryption and authentication. Off lets anybody who reaches the port run code here."""
    lanes: bool = True
    """Local connections beside the encrypted ones, for workers of this user on this host; `ZRPC_LANES=off` has none."""
    shared_memory_bytes: int = 1 << 30
    """Shared memory for large tensors to workers of this host, at most; what finds no room goes through sockets."""
    spin: float = 80e-6
    """How long a wait for a message looks again and again before it sleeps, at most, while waits are short; 0: never."""
    drain_timeout: float = 30.0
    """How long a worker that leaves goes on with calls that it has begun to serve."""

    reference_stacks: bool = False
    """Whether each reference remembers the calls that led to where it was made, for the warning at shutdown; 20 us each."""

    def __post_init__(self) -> None:
        problems = []
        for field in ("rpc_timeout", "init_timeout", "drain_timeout"):
            value = getattr(self, field)
            if not isinstance(value, (int, float)) or value < 0:
                problems.append(f"{field}: expected seconds, 0 or more, not {value!r}")
        if not isinstance(self.num_worker_threads, int) or not 1 <= self.num_worker_threads <= 4096:
            problems.append(f"num_worker_threads: expected 1 to 4096, not {self.num_worker_threads!r}")
        if not isinstance(self.spin, (int, float)) or not 0 <= self.spin <= MAX_SPIN:
            problems.append(f"spin: expected seconds, 0 to {MAX_SPIN:g}, not {self.spin!r}")
        unknown = [codec for codec in self.codecs if codec not in CODECS]
        if unknown:
            problems.append(f"codecs: expected some of {', '.join(CODECS)}, not {unknown!r}")
        for field, low, high in _NUMBERS:
            value = getattr(self, field)
            if not isinstance(value, int) or not low <= value <= high:
                expected = f"at least {low}" if high == _ANY else f"{low} to {high}"
                problems.append(f"{field}: expected {expected}, not {value!r}")
        if not isinstance(self.allow, tuple) or not all(isinstance(pattern, str) and pattern for pattern in self.allow):
            problems.append(f"allow: expected names of functions, or patterns, not {self.allow!r}")
        if self.when_full not in ("block", "fail"):
            problems.append(f"when_full: expected block or fail, not {self.when_full!r}")
        if problems:
            raise ConfigError("agent options", problems)

    def limits(self) -> Limits:
        """The bounds of a message."""
        return Limits(self.max_message_bytes, buffers=self.max_message_tensors, code_bytes=self.max_code_bytes)

    def replace(self, **changes: Any) -> AgentOptions:
        """A copy with some fields changed. Raises `ConfigError` for a name that is no option."""
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ConfigError("agent options", [f"{name}: there is no such option" for name in unknown])
        for name in ("codecs", "allow"):
            if isinstance(changes.get(name), list):
                changes[name] = tuple(changes[name])
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The options as JSON, for `ZRPC_OPTIONS`."""
        return json.dumps(dataclasses.asdict(self))


def from_environment(environ: Mapping[str, str] = os.environ) -> AgentOptions:
    """Options as a launcher leaves them for its workers, in `ZRPC_OPTIONS` (a JSON object of fields).

    Raises `ConfigError` when that is not one.
    """
    text = environ.get("ZRPC_OPTIONS", "")
    if not text:
        return AgentOptions()
    try:
        changes = json.loads(text)
        if not isinstance(changes, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ConfigError("environment variable ZRPC_OPTIONS", [f"expected a JSON object: {error}"]) from None
    return AgentOptions().replace(**changes)
