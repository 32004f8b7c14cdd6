"""Distributed autograd as programs use it: `context`, `backward`, `get_gradients`, and torch's private names.

One rule: the functions here check what they are given and ask the book of contexts; they keep nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Token
from types import TracebackType
from typing import Any

import torch

from zrpc.autograd.book import ContextBook
from zrpc.autograd.context import DistAutogradContext
from zrpc.errors import AutogradMisuse
from zrpc.runtime.context import current_agent
from zrpc.runtime.recording import Recorder, recorder


def _book() -> ContextBook:
    book = current_agent("distributed autograd").values.contexts
    assert isinstance(book, ContextBook)
    return book


class context:  # noqa: N801  torch's name
    """A context manager: calls made within are recorded, and `backward` computes gradients through them.

    `with zrpc.autograd.context() as context_id:` gives the id that `backward` and `get_gradients` take. At the end the
    context is forgotten on every worker that it came to, gradients included. If this worker has shut down in the block,
    that has happened already, and leaving the block does nothing, as with torch's. Contexts do not nest: raises
    `AutogradMisuse` when the thread, or the asyncio task, is in one already.
    """

    _book: ContextBook
    _token: Token[Recorder | None]

    def __enter__(self) -> int:
        if recorder.get() is not None:
            raise AutogradMisuse(_already())
        self._book = _book()
        self.autograd_context = self._book.begin()
        self._token = recorder.set(self.autograd_context)
        return self.autograd_context.context_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        recorder.reset(self._token)
        self._book.release(self.autograd_context.context_id)  # of the worker that began it, whichever there is now


def _already() -> str:
    found = recorder.get()
    number = "" if found is None else found.context_id
    return f"Already have an autograd context id for this thread: {number}"


def backward(context_id: int, roots: Sequence[torch.Tensor], retain_graph: bool = False) -> None:
    """Compute gradients from `roots` on, through all recorded calls, on all workers; returns when they are there.

    They are added up in the context, on the worker of each leaf: `get_gradients` has them, `.grad` is left alone.

    Args:
        context_id: a context that this worker takes part in.
        roots: tensors of one element, each with a graph behind it.
        retain_graph: whether the graph is kept for another pass.

    Raises:
        AutogradMisuse: no such context; roots that cannot be.
        BackwardFault: another worker failed in its part; it says which, in which operation. What was raised here is
            raised as it is.
        WorkerLost, CallTimeout: a worker of the graph is gone, or did not answer in time.
    """
    if type(context_id) is not int or not isinstance(roots, (list, tuple)) or not _are_tensors(roots):
        raise TypeError(
            "backward(): incompatible function arguments. Expected (context_id: int, roots: list[torch.Tensor], "
            f"retain_graph: bool = False), got ({type(context_id).__name__}, {type(roots).__name__})"
        )
    _book().backward(context_id, roots, bool(retain_graph))


def _are_tensors(roots: Sequence[Any]) -> bool:
    return all(isinstance(root, torch.Tensor) for root in roots)


def get_gradients(context_id: int) -> dict[torch.Tensor, torch.Tensor]:
    """The gradients that passes of this context have brought to leaves of this worker: leaf -> gradient.

    A new dict at each call; it does not change when further passes add to the gradients.
    """
    found = _book().get(context_id)
    with found.lock:
        return dict(found.gradients)


def is_available() -> bool:
    """Whether there is distributed autograd: always."""
    return True


# ------------------------------------------------------------------------------------------------ torch's private names


def _new_context() -> DistAutogradContext:
    """A context, which the thread is in until `_release_context`."""
    if recorder.get() is not None:
        raise AutogradMisuse(_already())
    made = _book().begin()
    recorder.set(made)
    return made


def _release_context(context_id: int) -> None:
    """End a context. Raises `AutogradMisuse` when there is none of that id here."""
    book = _book()
    book.get(context_id)
    found = recorder.get()
    if found is not None and found.context_id == context_id:
        recorder.set(None)
    book.release(context_id)


def _current_context() -> DistAutogradContext:
    """The context that the thread is in. Raises `AutogradMisuse` without one."""
    found = recorder.get()
    if not isinstance(found, DistAutogradContext):
        raise AutogradMisuse(
            "Current thread doesn't have a valid autograd context. Please wrap your code using: "
            "`with torch.distributed.autograd.context() as context_id` to generate a valid context"
        )
    return found


def _retrieve_context(context_id: int) -> DistAutogradContext:
    """A context that this worker takes part in. Raises `AutogradMisuse` when there is none of that id."""
    return _book().get(context_id)


def _get_max_id() -> int:
    """The largest context id that this worker can give."""
    return _book().largest_id()


def _is_valid_context(context_id: int) -> bool:
    """Whether this worker takes part in a context of that id."""
    return _book().find(context_id) is not None


def _get_debug_info() -> dict[str, str]:
    """Counters: passes that began here and are not over, contexts that this worker takes part in."""
    book = _book()
    return {
        "num_current_backward_passes": str(book.engine.running.total()),
        "num_autograd_contexts": str(len(book)),
    }
