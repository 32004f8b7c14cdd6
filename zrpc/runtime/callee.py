"""Incoming calls: find the function, read the arguments, run it, answer.

One rule: a call is answered once, whatever happens to it: whoever takes it out of the table of calls under way answers
it. Only a call whose deadline has passed before it starts is dropped without an answer, because nobody waits for one.

    arrived --> waiting --> running --> done (answered)        a cancelled call is answered at once, from any state;
                   |           '------> attached to a future    its function, if it is a Python function that runs, ends
                   '--> dropped (too late)                      at its next check, and its result is dropped
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import torch

from zrpc.clock import Clock, monotonic, to_ns
from zrpc.errors import Cancelled, FrameError, Unavailable, UnknownFunction
from zrpc.protocol.served import Served
from zrpc.runtime.admission import Admission
from zrpc.runtime.callables import ASYNC_ATTRIBUTE
from zrpc.runtime.context import running
from zrpc.runtime.eventloop import EventLoop
from zrpc.runtime.executor import Executor
from zrpc.runtime.handles import Reference
from zrpc.runtime.identity import Identity
from zrpc.runtime.methods import backward, invoke, not_a_future, type_of
from zrpc.runtime.profile_ranges import ProfileRange, run_in_ranges
from zrpc.runtime.profiling import Recordings, attach_profile, is_asked, run_recorded
from zrpc.runtime.progress import describe_calls, describe_tasks
from zrpc.runtime.raising import emptied
from zrpc.runtime.recording import Recorder, recorder
from zrpc.runtime.references import References
from zrpc.runtime.tasks import Asker, Task, as_runtime_error, import_function, print_traceback
from zrpc.runtime.values import Values, forks_of
from zrpc.serialization.codestore import CodeStore
from zrpc.serialization.failures import encode_failure
from zrpc.telemetry.metrics import CallMeter
from zrpc.telemetry.trace import LAST_THREAD, NOTE, RAN, READ, REPLIED, Tracer
from zrpc.wire.envelope import Codec, Envelope, Extra, Kind, pack, pack_sized
from zrpc.wire.limits import Limits

if TYPE_CHECKING:
    from zrpc.runtime.draining import Draining

_CALL, _REMOTE_CALL, _REPLY = Kind.CALL, Kind.REMOTE_CALL, Kind.REPLY
_SCRIPT, _PYTHON, _BUILTIN = Codec.SCRIPT, Codec.PYTHON, Codec.BUILTIN
_CODECS = {int(codec): codec for codec in Codec}
# Once, since looking up a member of an enum costs three times as much, and each call does it a dozen times.

logger = logging.getLogger(__name__)


class Callee:
    """Serves calls for one agent."""

    def __init__(
        self,
        admission: Admission,
        identity: Identity,
        values: Values,
        code: CodeStore,
        references: References,
        executor: Executor,
        meter: CallMeter,
        limits: Limits,
        loop: EventLoop,
        clock: Clock = monotonic,
        tracer: Tracer | None = None,
    ) -> None:
        self._admission = admission
        self._identity = identity
        self._values = values
        self._code = code
        self._references = references
        self._executor = executor
        self._meter = meter
        self._limits = limits
        self._loop = loop
        self._clock = clock
        self._tracer = tracer or Tracer()
        self._tasks: dict[tuple[int, int, int], Task] = {}
        self.recordings = Recordings()
        self.profile_ranges: list[ProfileRange] = []
        self._served = Served()
        self._served_lock = threading.Lock()
        self._last_end = clock()
        self.gate: Draining | None = None
        """Set once this worker is about to leave."""

    # ------------------------------------------------------------------------------------ arriving

    def on_call(self, asker: Asker, envelope: Envelope, is_local: bool = False) -> None:
        """A call came. Runs it here or hands it to the pool; a call of this worker to itself always goes to the pool."""
        task = Task(asker, envelope, None, self._clock())
        try:
            if self.gate is not None:
                self.gate.check(envelope)
            if not self._find_function(task):
                self._answer(task, Kind.NEED_CODE)
                return
            if not self.is_first(envelope):
                return  # the network has repeated it; the references in it belong to the first
            is_remote = envelope.kind == _REMOTE_CALL
            if is_remote and envelope.rref is None:
                raise FrameError("a remote call without an RRef id")
            self._admission.enter(task.sender)
            if is_remote and not self._accept(envelope):
                self._admission.leave(task.sender)
                self._values.drop(envelope)
                self._meter.dropped()
                return
        except Exception as error:
            self._values.drop(envelope)
            self._answer_error(task, error)
            return
        self._tasks[task.key] = task
        job = functools.partial(self._start, task)
        key = envelope.code or envelope.function
        if is_local:
            self._executor.submit(job, key)
        else:
            self._executor.run(job, key)

    def is_first(self, envelope: Envelope) -> bool:
        """Take on a message: True the first time that it comes, False when the network has repeated it."""
        with self._served_lock:
            return self._served.accept((envelope.sender, envelope.sender_incarnation), envelope.message_id)

    def on_cancel(self, envelope: Envelope) -> None:
        """A call is not wanted any more. Does nothing if it has been answered, or was never made."""
        key = envelope.sender, envelope.sender_incarnation, envelope.message_id
        task = self._tasks.get(key)
        if task is None or task.envelope.kind != Kind.CALL or not self._take_out(task):
            return
        task.cancel()
        if not task.has_started:
            self._values.drop(task.envelope)
        self._answer_error(task, Cancelled(f"the call of {task.envelope.function} was cancelled"))

    def _take_out(self, task: Task) -> bool:
        """Take a call out of the table, to answer it; False when somebody has."""
        if self._tasks.pop(task.key, None) is None:
            return False
        self._admission.leave(task.sender)
        return True

    def under_way(self) -> int:
        """Calls that have come and whose functions have not ended, the cancelled ones left out."""
        return len(self._tasks)

    def describe(self, question: Mapping[str, Any], sender: tuple[int, int]) -> dict[str, Any]:
        """What became of some calls of `sender`, or of all calls; see `progress`."""
        tasks = list(self._tasks.values())
        if question.get("what") == "tasks":
            return describe_tasks(tasks, self._last_end, self._clock)
        return describe_calls(question, sender, tasks, self._last_end, self._clock)

    def _find_function(self, task: Task) -> bool:
        """Find a TorchScript function by its content; False when its code must be asked for."""
        envelope = task.envelope
        if envelope.function is None:
            raise FrameError("a call without a function")
        codec = envelope.codec
        by_name = codec == _BUILTIN and self._code.is_own(envelope.function)
        self._values.check_accepts(_SCRIPT if by_name else codec, envelope.function)
        self._admission.check_name(envelope.function)
        if codec == _SCRIPT:
            if envelope.code is None:
                raise FrameError("a TorchScript call without a code hash")
            task.func = self._code.resolve(envelope.function, envelope.code)
            if task.func is None:
                index = envelope.extra.get(Extra.CODE) if envelope.extra else None
                if index is None:
                    self._code.check_accepts(envelope.function)
                    return False
                if type(index) is not int or not 0 <= index < len(envelope.buffers):
                    raise FrameError("the code's buffer is not in the message")
                archive = bytes(envelope.buffers[index])
                task.func = self._code.load(envelope.function, envelope.code, archive)
                envelope.buffers = [b for i, b in enumerate(envelope.buffers) if i != index]
        elif codec == _BUILTIN:
            task.func = self._code.resolve(envelope.function, None)
            if task.func is None:
                raise UnknownFunction(
                    f"worker {self._identity.info.name!r} has no function named {envelope.function!r}: expected a torch "
                    "operator such as 'aten::add', the qualified name of a TorchScript function that was loaded or "
                    "scripted there, or module:function for a Python function"
                )
        return True

    def _accept(self, envelope: Envelope) -> bool:
        """Register the remote value that the call creates; the call is answered when there is one.

        False: the call is a repetition, or came too late.
        """
        sender = envelope.sender, envelope.sender_incarnation
        return self._references.on_remote_call(envelope.rref or (), sender, envelope.function or "")

    # ------------------------------------------------------------------------------------ running

    def _start(self, task: Task) -> None:
        """Read the arguments and run the function, on the thread that will run it."""
        if task.is_cancelled:
            return
        task.has_started = True
        task.began, task.thread = self._clock(), threading.get_ident()
        envelope = task.envelope
        if task.deadline is not None and task.began >= task.deadline and envelope.kind == _CALL:
            if self._take_out(task):
                self._values.drop(envelope)
                self._meter.dropped()
            return
        if envelope.trace is not None:
            self._tracer.serve(envelope, envelope.function or "", task.arrived, task.began)
        try:
            func, args, kwargs = self._read(task)
        except BaseException as error:
            self._finish(task, None, error)
            return
        if envelope.span is not None:
            envelope.span[READ] = self._clock()
        if envelope.extra is not None and self._awaits_owners(task, func, args, kwargs):
            return
        self._begin(task, func, args, kwargs)

    def _awaits_owners(self, task: Task, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """As in torch, a function starts when the owners know of the references in its arguments: whatever becomes of
        whoever passed them on, they can be used. No thread waits for that."""

        def begin() -> None:
            if not task.is_cancelled:
                self._begin(task, func, args, kwargs)

        def go_on() -> None:
            self._executor.submit(begin)

        forks = forks_of(task.envelope)
        return bool(forks) and self._references.when_confirmed(forks, task.envelope.function or "", go_on)

    def _begin(self, task: Task, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the function, once what it needs is here."""
        if task.envelope.codec != _PYTHON:
            for argument in args:
                if isinstance(argument, Reference):
                    self._run_script(task, func, args, kwargs)
                    return
            self._run(task, func, args, kwargs)
        elif func is invoke or func is type_of or func is backward:
            self._run_on_value(task, func, args, kwargs)
        else:
            self._run(task, func, args, kwargs)

    def _read(self, task: Task) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        envelope = task.envelope
        if envelope.autograd is None:
            value = self._values.read(envelope)
        else:
            task.recorder = self._values.join(envelope)
            value = self._values.read(envelope, task.recorder)
        func: Any
        if envelope.codec == _SCRIPT:
            func, args, kwargs = task.func, value, {}
        elif envelope.codec == _BUILTIN:
            func = task.func
            args, kwargs = value
        else:
            func, args, kwargs = value
            if func is None:
                func = import_function(envelope.function or "")
            else:
                self._admission.check_function(func)
        if not callable(func) or not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise FrameError(f"the body of the call to {envelope.function} is not a function's arguments")
        return func, args, kwargs

    def _run_on_value(self, task: Task, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run a function of `methods` when the value of its reference is there; no thread waits for that."""
        reference = args[0] if args else None
        if not isinstance(reference, Reference) or not reference.is_owner():
            what = f"{task.envelope.function} of something that is not a reference to a value of this worker"
            self._finish(task, None, FrameError(what))
            return

        def go_on(_value: Any, _error: BaseException | None) -> None:
            self._executor.submit(lambda: self._run(task, func, args, kwargs))

        if self._references.is_ready(reference.rref_id):
            self._run(task, func, args, kwargs)
        else:
            task.thread = 0
            self._references.when_ready(reference.rref_id, go_on)

    def _run_script(self, task: Task, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the values in the place of references that are owned here; wait, without a thread, for those to come."""
        missing = [
            a for a in args if isinstance(a, Reference) and a.is_owner() and not self._references.is_ready(a.rref_id)
        ]
        if missing:

            def go_on(_value: Any, _error: BaseException | None) -> None:
                self._executor.submit(lambda: self._run_script(task, func, args, kwargs))

            task.thread = 0
            self._references.when_ready(missing[0].rref_id, go_on)
            return
        try:
            plain = tuple(a.local_value() if isinstance(a, Reference) else a for a in args)
        except BaseException as error:
            self._finish(task, None, error)
        else:
            self._run(task, func, plain, kwargs)

    def _run(self, task: Task, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if task.recorder is None:
            self._run_here(task, func, args, kwargs)
            return
        token = recorder.set(task.recorder)
        try:
            self._run_here(task, func, args, kwargs)
        finally:
            recorder.reset(token)

    def _run_here(self, task: Task, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        saved = running.scope
        running.scope = task
        task.thread = threading.get_ident()
        try:
            if self.profile_ranges:
                arrived_ns = to_ns(task.arrived)
                value = run_in_ranges(self.profile_ranges, task.envelope, arrived_ns, func, args, kwargs)
            elif task.envelope.extra is not None and is_asked(task.envelope):
                value = run_recorded(task.envelope, to_ns(task.arrived), func, args, kwargs)
            else:
                value = func(*args, **kwargs)
        except BaseException as error:  # whatever a user function raises belongs to its caller
            if task.envelope.codec != _PYTHON:
                error = as_runtime_error(error)
            elif not task.is_cancelled:
                print_traceback(error)
            self._finish(task, None, error)
            return
        finally:
            running.scope = saved
            if not torch.is_grad_enabled():  # it is the thread's, which goes on to other calls
                torch._C._set_grad_enabled(True)
        if isinstance(value, CoroutineType) and task.envelope.codec == _PYTHON:
            self._run_coroutine(task, value)
        elif isinstance(value, torch._C.Future) and self._is_async(task, func):
            self._attach(task, value)
        elif task.is_async:
            self._finish(task, None, RuntimeError(self._wrong_result(task, value)))
        else:
            self._finish(task, value, None)

    def _run_coroutine(self, task: Task, coroutine: CoroutineType[Any, Any, Any]) -> None:
        """The function is an `async def`: go on with it on the event loop."""

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None and not task.is_cancelled:
                print("".join(traceback.format_exception(error)), file=sys.stderr)
            self._finish(task, value, error)

        task.thread = 0
        try:
            self._loop.run(coroutine, task, done)
        except Unavailable as error:
            self._finish(task, None, error)

    def _is_async(self, task: Task, func: Any) -> bool:
        return task.is_async or task.envelope.codec != _PYTHON or func is invoke or hasattr(func, ASYNC_ATTRIBUTE)

    @staticmethod
    def _wrong_result(task: Task, value: Any) -> str:
        if task.envelope.codec == _SCRIPT:
            kind = "Tensor" if isinstance(value, torch.Tensor) else type(value).__name__
            return f"Async functions must return an IValue of Future type, but got {kind}"
        return not_a_future(value, task.envelope.function)

    def _attach(self, task: Task, future: torch._C.Future[Any]) -> None:
        """Answer when the function's future is complete."""
        task.thread = 0

        def done(completed: torch._C.Future[Any]) -> None:
            try:
                value = completed.wait()
            except BaseException as error:
                self._finish(task, None, error)
            else:
                self._finish(task, value, None)

        future.add_done_callback(done)

    # ------------------------------------------------------------------------------------ answering

    def _finish(self, task: Task, value: Any, error: BaseException | None) -> None:
        """The function is done: answer the call, or keep the value that was to be created."""
        is_wanted = self._take_out(task)
        ended = self._last_end = self._clock()
        if task.envelope.span is not None:
            task.envelope.span[RAN] = ended
            if not task.thread:  # it was given up: the function's value came later
                task.envelope.span[LAST_THREAD] = threading.get_ident()
        rref_id = None if task.envelope.rref is None else task.rref_id
        if rref_id is not None:
            self._meter.served(task.size, 0, error is not None)
            if task.envelope.extra is not None:
                self.recordings.keep(task.envelope)
            kept_error = None if error is None else emptied(error)
            self._references.set_value(rref_id, value, kept_error, _CODECS[task.envelope.codec])
            if task.envelope.span is not None:
                self._tracer.end(task.envelope.span, "" if error is None else type(error).__name__)
            with contextlib.suppress(Unavailable):  # whoever asked for it is gone, and is lost to the references too
                self._answer(task, _REPLY)
        elif not is_wanted:
            pass  # cancelled, and answered then
        elif error is not None:
            self._answer_error(task, error)
        else:
            self.answer_value(
                task.asker, task.envelope, value, task.envelope.codec, task.size, task.deadline, task.recorder
            )
        if self.gate is not None:
            self.gate.look()

    def answer_value(
        self,
        asker: Asker,
        envelope: Envelope,
        value: Any,
        codec: int,
        size: int,
        deadline: float | None,
        recorder: Recorder | None = None,
    ) -> None:
        """Send a value as the reply to `envelope`, recorded in a context; if it cannot be sent, that is the reply."""
        reply = self._reply(envelope, _REPLY)
        to = (envelope.sender, envelope.sender_incarnation)
        try:
            self._values.write(reply, codec, value, to, deadline, recorder=recorder)
            if envelope.extra is not None:
                attach_profile(envelope, reply)
            frames, size_out = pack_sized(reply, self._limits)
        except BaseException as error:  # the value's own methods may raise anything, as functions may
            self._values.take_back(reply, to)
            self.answer_error(asker, envelope, error, size)
            return
        self._send(asker, envelope, reply, frames, size, size_out)

    def answer_error(self, asker: Asker, envelope: Envelope, error: BaseException, size: int) -> None:
        """Send an exception as the reply to `envelope`."""
        reply = self._reply(envelope, Kind.ERROR)
        reply.codec = Codec.MSGPACK
        reply.body = encode_failure(error, self._identity.info.id, self._identity.info.name)
        if envelope.extra is not None:
            attach_profile(envelope, reply)
        frames, size_out = pack_sized(reply, self._limits)
        self._send(asker, envelope, reply, frames, size, size_out)

    def _answer_error(self, task: Task, error: BaseException) -> None:
        self.answer_error(task.asker, task.envelope, error, task.size)

    def _answer(self, task: Task, kind: Kind) -> None:
        reply = self._reply(task.envelope, kind)
        task.asker.answer(pack(reply, self._limits))

    def _reply(self, envelope: Envelope, kind: Kind) -> Envelope:
        identity = self._identity
        reply = Envelope(kind, envelope.message_id, identity.info.id, identity.incarnation, envelope.sender_incarnation)
        reply.trace = envelope.trace
        return reply

    def _send(self, asker: Asker, request: Envelope, reply: Envelope, frames: Any, size: int, size_out: int) -> None:
        if request.kind <= _REMOTE_CALL:
            self._meter.served(size, size_out, reply.kind == Kind.ERROR)
        if request.span is not None:
            request.span[NOTE] = "failed" if reply.kind == Kind.ERROR else ""
            request.span[REPLIED] = self._clock()
            if self._tracer.sink is not None:
                self._tracer.tell(request.span)
        try:
            asker.answer(frames)
        except Unavailable:
            self._values.take_back(
                reply, (request.sender, request.sender_incarnation)
            )  # the caller is gone, and its error with it
