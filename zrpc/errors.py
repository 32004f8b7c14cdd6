"""The whole error tree of zrpc.

One rule: every error that zrpc raises on purpose is a `ZrpcError`, carries its facts as fields, and makes its
sentence from them: what failed, on which worker, why, and what to do next.

    ZrpcError (a RuntimeError, as torch's RPC raises)
    |-- LocalFault                     the mistake or the limit is on this side; nothing was sent
    |   |-- NotInitialized             no agent runs in this process
    |   |-- AlreadyInitialized         an agent runs already
    |   |-- InvalidName                a worker name with forbidden characters, empty or too long
    |   |-- InvalidDestination (also a ValueError)   something that names no worker, where one is to be named
    |   |-- ConfigError                a configuration file, option or environment variable
    |   |-- KeyFileError               a key file that is missing, malformed or readable by others
    |   |-- ArgumentMismatch           arguments that do not fit a TorchScript schema
    |   |-- EncodeError                a value that cannot be put in a message (names the path to it)
    |   |-- LimitExceeded              a message, name or count over a configured limit
    |   |-- Overloaded                 more calls under way than max_pending_bytes allows
    |   |-- RRefMisuse                 local_value() on a user, an RRef pickled outside a call, ...
    |   `-- AutogradMisuse             no context of that id, roots without a graph, ...
    |-- Unavailable                    the other side cannot be reached now
    |   |-- BrokerUnreachable          no answer from the broker's address
    |   |-- UnknownWorker              nobody of that name (lists the known)
    |   |-- WorkerLost                 the worker died or left while we waited for it
    |   |-- WorkerDraining             the worker is about to leave and takes no new work
    |   `-- RRefLost                   the owner of the reference is gone
    |-- Refused                        the other side answered, and said no
    |   |-- NameTaken                  a living worker has the name
    |   |-- JoinRefused                the broker does not take this member (version, group, rank)
    |   |   `-- TooManyNames           its host, or its connection, has as many names as the broker takes from one
    |   |-- CodecRefused               the worker does not accept calls of this codec
    |   |-- CodeRefused                the worker accepts only functions it was given at start
    |   |-- CallNotAllowed             the worker's list of functions does not have this one
    |   |-- TooManyCalls               the worker has as many calls of this caller as it takes
    |   |-- UnknownFunction            the worker has no function of that name
    |   |-- NotImportable (also an AttributeError)   a function or class that the reading worker does not have
    |   `-- StaleIncarnation           the message was meant for an earlier life of the worker
    |-- DeadlineExceeded (also a TimeoutError)
    |   |-- CallTimeout                a call that had no reply at its deadline
    |   `-- GroupTimeout               a group that did not form (names who is missing)
    |-- Cancelled                      the call was cancelled
    |-- RemoteFault                    the function raised there, and its type does not exist here
    |-- BackwardFault                  a worker could not compute its part of a backward pass
    `-- ProtocolFault                  bytes or events that no correct peer produces
        |-- FrameError                 a frame that does not parse, or breaks a limit
        |-- VersionMismatch            a peer that speaks another protocol version
        |-- DecodeRefused              a pickle naming something outside the allow-list
        `-- InvalidTransition          an event that the state machine has no row for
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable


class ZrpcError(RuntimeError):
    """Root of every error that zrpc raises on purpose."""


# ---------------------------------------------------------------------------------------------- local


class LocalFault(ZrpcError):
    """The mistake or the limit is on this side; nothing was sent."""


class NotInitialized(LocalFault):
    """No agent runs in this process."""

    def __init__(self, what: str = "") -> None:
        self.what = what
        tail = f" ({what})" if what else ""
        super().__init__(
            "RPC has not been initialized. Call init_rpc first."
            f"{tail} Current RPC agent is not set! Did you initialize the RPC framework (e.g. by calling `init_rpc`)?"
        )


class AlreadyInitialized(LocalFault):
    """An agent runs already in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"RPC is already initialized in this process, as worker {name!r}. Call shutdown() first.")


class InvalidName(LocalFault):
    """A worker name that is empty, too long or has forbidden characters."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self.why = why
        super().__init__(
            f"{why}: {name[:200]!r}. Worker name must match ^[A-Za-z0-9-_:]*$, must be non-empty, "
            "and must be shorter than 128 characters."
        )


class InvalidDestination(LocalFault, ValueError):
    """Something that is neither a worker's name nor its id nor a `WorkerInfo`, where one of these is to be."""

    def __init__(self, to: object) -> None:
        self.to = to
        super().__init__(
            f"Cannot get WorkerInfo from name {to!r}: a worker is named by its name, its id or its WorkerInfo, "
            f"not by a {type(to).__name__}"
        )


class ConfigError(LocalFault):
    """A configuration file, option or environment variable that cannot be used.

    `problems` has one line for each thing found: where, what was expected, what was there.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            only = self.problems[0]
            super().__init__(only if only.startswith(source) else f"{source}: {only}")
        else:
            super().__init__(f"{source}: " + "\n  ".join((f"{len(self.problems)} problems", *self.problems)))


class KeyFileError(LocalFault):
    """A key file that is missing, malformed or readable by others."""

    def __init__(self, path: str, why: str, remedy: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"key file {path}: {why}. {remedy}")


class ArgumentMismatch(LocalFault):
    """Arguments that do not fit a TorchScript function's schema; nothing was sent."""

    def __init__(self, function: str, why: str, schema: str) -> None:
        self.function = function
        self.why = why
        self.schema = schema
        super().__init__(f"{function}() {why}. Declaration: {schema}")


class EncodeError(LocalFault):
    """A value that cannot be put in a message; `path` leads to the part that cannot."""

    def __init__(self, path: str, type_name: str, why: str) -> None:
        self.path = path
        self.type_name = type_name
        self.why = why
        super().__init__(f"cannot send {path}, of type {type_name}: {why}")


class LimitExceeded(LocalFault):
    """A message, a name or a count over a configured limit."""

    def __init__(self, what: str, size: int, limit: int, remedy: str = "") -> None:
        self.what = what
        self.size = size
        self.limit = limit
        super().__init__(f"{what} is {size}, over the limit of {limit}. {remedy}".rstrip())


class RRefMisuse(LocalFault):
    """An operation that this RRef, here and now, does not have."""


class Overloaded(LocalFault):
    """More bytes of calls are under way than are allowed, and calls are to fail then (`when_full: fail`)."""

    def __init__(self, worker: str, size: int, limit: int) -> None:
        self.worker = worker
        self.size = size
        self.limit = limit
        super().__init__(
            f"a call of {size} bytes to worker {worker!r} was not made: with those that wait for their replies it would be "
            f"over the limit of {limit} bytes (max_pending_bytes). Wait for replies first, raise the limit, or set "
            "when_full to block."
        )


# ---------------------------------------------------------------------------------------- unavailable


class AutogradMisuse(LocalFault):
    """A use of distributed autograd that its rules do not allow: no context of that id, roots without a graph, ..."""


class Unavailable(ZrpcError):
    """The other side cannot be reached now; trying again later may work."""


class BrokerUnreachable(Unavailable):
    """No answer from the broker's address."""

    def __init__(self, address: str, waited: float, why: str = "no answer") -> None:
        self.address = address
        self.waited = waited
        super().__init__(
            f"no broker answered at {address} for {waited:.1f} s ({why}). Is it running, is the address right, "
            "and does this process use the cluster's key file (ZRPC_KEY_FILE)?"
        )


class UnknownWorker(Unavailable):
    """Nobody of that name or id is in the cluster."""

    def __init__(self, name: str | int, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        listed = ", ".join(self.known[:32]) + (f", and {len(self.known) - 32} more" if len(self.known) > 32 else "")
        super().__init__(f"could not find destination worker {name!r}. Known workers: {listed or 'none'}.")


class WorkerLost(Unavailable):
    """The worker died, was cut off or left while something waited for it."""

    def __init__(self, worker: str, why: str, while_: str = "") -> None:
        self.worker = worker
        self.why = why
        self.while_ = while_
        doing = f" while {while_}" if while_ else ""
        super().__init__(
            f"worker {worker!r} was lost{doing}: {why}. Work in flight there may or may not have run; "
            "calls to the name work again once it has rejoined."
        )


class WorkerDraining(Unavailable):
    """The worker is about to leave and takes no new work; the call was not started."""

    def __init__(self, worker: str, why: str, function: str = "") -> None:
        self.worker = worker
        self.why = why
        self.function = function
        what = f"the call of {function}" if function else "the call"
        super().__init__(
            f"worker {worker!r} is leaving ({why}) and takes no new work: {what} was not started. "
            "Make it again on another worker, or here once the name is back."
        )


class RRefLost(Unavailable):
    """The owner of the reference is gone, and the value with it."""

    def __init__(self, rref: str, owner: str, why: str, when: float | None = None) -> None:
        self.rref = rref
        self.owner = owner
        self.why = why
        self.when = when
        """When this worker heard of it, in seconds since 1970; None when that is not known."""
        at = "" if when is None else f" (at {datetime.datetime.fromtimestamp(when):%H:%M:%S})"
        super().__init__(f"the value of {rref} is lost with its owner {owner!r}: {why}{at}. Create it again.")


# -------------------------------------------------------------------------------------------- refused


class Refused(ZrpcError):
    """The other side answered, and said no. Its message says why."""


class NameTaken(Refused):
    """A living worker has the name."""

    def __init__(self, name: str, holder: str = "") -> None:
        self.name = name
        self.holder = holder
        by = f" (held by {holder})" if holder else ""
        super().__init__(
            f"worker name {name!r} is not unique{by}: a living worker has it. Use another name, or stop that worker."
        )


class JoinRefused(Refused):
    """The broker does not take this member."""


class TooManyNames(JoinRefused):
    """The host, or the connection, has as many names as the broker takes from one."""

    def __init__(self, peer: str, limit: int, option: str) -> None:
        self.peer = peer
        self.limit = limit
        self.option = option
        super().__init__(
            f"{peer} has {limit} names, as many as the broker takes from one ({option}). Stop some of its workers, or "
            "raise the broker's limit."
        )


class CodecRefused(Refused):
    """The worker does not accept calls of this codec."""


class CodeRefused(Refused):
    """The worker accepts only functions that it was given at start."""


class CallNotAllowed(Refused):
    """The worker's list of functions (`allow`) does not have this one."""


class TooManyCalls(Refused):
    """The worker has as many calls of this caller under way as it takes from one."""


class UnknownFunction(Refused):
    """The worker has no function of that name."""


class NotImportable(Refused, AttributeError):
    """A message names a module, function or class that the worker which reads it does not have."""

    def __init__(self, module: str, name: str, why: str) -> None:
        self.module = module
        self.qualified_name = name
        what = f"{module}.{name}" if name else module or "something"
        super().__init__(
            f"cannot import {what}, which a message needs, in this process: {why}. "
            "Default RPC pickler does not serialize function code. Ensure that UDFs are defined on both caller and "
            "callee modules."
        )


class StaleIncarnation(Refused):
    """The message was meant for an earlier life of the worker."""


# ------------------------------------------------------------------------------------------- deadline


class DeadlineExceeded(ZrpcError, TimeoutError):
    """Something had not happened when its deadline passed."""

    def __str__(self) -> str:  # OSError would print errno pairs
        return str(self.args[0]) if self.args else ""


class CallTimeout(DeadlineExceeded):
    """A call that had no reply at its deadline. It may still run on the worker; its result is dropped."""

    def __init__(self, worker: str, function: str, seconds: float, state: str = "") -> None:
        self.worker = worker
        self.function = function
        self.seconds = seconds
        self.state = state
        tail = f" {state}" if state else ""
        super().__init__(
            f"RPC ran for more than set timeout ({round(seconds * 1000)} ms) and timed out: "
            f"{function} on worker {worker!r} had not replied after {seconds:g} s.{tail}"
        )


class GroupTimeout(DeadlineExceeded):
    """A group that did not form in time; `missing` names who was not there."""

    def __init__(
        self, what: str, waited: float, present: Iterable[str], missing: Iterable[str], short: int = 0
    ) -> None:
        self.waited = waited
        self.present = tuple(sorted(present))
        self.missing = tuple(sorted(missing))
        self.short = max(short, len(self.missing))
        who = ", ".join(self.missing) if self.missing else f"{self.short} more (not named)"
        super().__init__(
            f"{what} timed out after {waited:.1f} s. Missing: {who}. Present: {', '.join(self.present) or 'nobody'}."
        )


# --------------------------------------------------------------------------------- cancelled and remote


class Cancelled(ZrpcError):
    """The call was cancelled."""


class RemoteFault(ZrpcError):
    """The function raised on the worker, and its exception type does not exist here.

    `type_name` is the type there; `worker` its name; `traceback` the text of the remote traceback.
    """

    def __init__(self, message: str, type_name: str = "", worker: str = "", traceback: str = "") -> None:
        self.type_name = type_name
        self.worker = worker
        self.traceback = traceback
        super().__init__(message)


class BackwardFault(ZrpcError):
    """A worker could not compute its part of a backward pass.

    `worker` and `worker_id` say where; `operation` is the name of the autograd node whose backward raised, '' if it is
    not known; `why` is the exception's text. The context keeps the gradients that were there before.
    """

    def __init__(self, worker: str, worker_id: int, operation: str, why: str) -> None:
        self.worker = worker
        self.worker_id = worker_id
        self.operation = operation
        self.why = why
        where = f"worker {worker!r}" + (f", in {operation}" if operation else "")
        super().__init__(f"Error on Node {worker_id}: {why} ({where}, during a distributed backward pass)")


# ------------------------------------------------------------------------------------------- protocol


class ProtocolFault(ZrpcError):
    """Bytes or events that no correct peer produces."""


class FrameError(ProtocolFault):
    """A frame that does not parse, or breaks a limit."""


class VersionMismatch(ProtocolFault):
    """A peer that speaks another protocol version."""

    def __init__(self, theirs: int, ours: int) -> None:
        self.theirs = theirs
        self.ours = ours
        super().__init__(
            f"the peer speaks protocol version {theirs}, this process version {ours}. Install the same torch-zrpc on both."
        )


class DecodeRefused(ProtocolFault):
    """A pickle that names something outside the allow-list of its codec."""

    def __init__(self, what: str, codec: str) -> None:
        self.what = what
        self.codec = codec
        super().__init__(f"{what} is not allowed in a message of the {codec} codec; the message was refused unread")


class InvalidTransition(ProtocolFault):
    """An event that the state machine has no row for; nothing was changed."""

    def __init__(self, event: str, role: str, state: str) -> None:
        self.event = event
        self.role = role
        self.state = state
        super().__init__(f"{role} in state {state} cannot take {event}")
