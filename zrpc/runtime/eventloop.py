"""Coroutines that others call: asyncio's loop, on a thread of its own.

One rule: one loop for an agent, started when the first coroutine comes; no thread for a call.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from zrpc.errors import Cancelled, Unavailable
from zrpc.runtime.context import running
from zrpc.runtime.scopes import ON_LOOP, Scope, loop_scope

Completion = Callable[[Any, BaseException | None], None]


class EventLoop:
    """Runs the coroutines of one agent. Safe to use from any thread. `prepare` is called first on its thread."""

    def __init__(self, name: str, prepare: Callable[[], None]) -> None:
        self._name = name
        self._prepare = prepare
        self._lock = threading.Lock()
        self._is_stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any], scope: Scope, done: Completion) -> None:
        """Run a coroutine for the call that `scope` is; `done` is called once, on the loop's thread.

        A cancelled scope cancels it. Raises `Unavailable` when the loop has been stopped.
        """
        with self._lock:
            if self._is_stopped:
                coroutine.close()
                raise Unavailable("this worker has shut down")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._live, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()
            self._loop.call_soon_threadsafe(self._begin, self._loop, coroutine, scope, done)

    @staticmethod
    def _begin(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], scope: Scope, done: Completion
    ) -> None:
        context = contextvars.copy_context()
        context.run(loop_scope.set, scope)
        task = context.run(loop.create_task, coroutine)  # its own tasks inherit the context, and so the scope

        def finished(task: asyncio.Task[Any]) -> None:
            scope.leave(id(task))
            if task.cancelled():
                done(None, Cancelled("the coroutine was cancelled"))
            else:
                error = task.exception()
                done(None if error else task.result(), error)

        def end() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop is closed, and has cancelled all
                pass

        task.add_done_callback(finished)
        scope.enroll(id(task), end)

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        self._prepare()
        running.scope = ON_LOOP
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def stop(self, timeout: float) -> bool:
        """Cancel what runs and end the thread; False if that takes longer than `timeout` seconds."""
        with self._lock:
            self._is_stopped = True
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return True
            if not loop.is_closed():
                loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()
