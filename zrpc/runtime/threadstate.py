"""What torch keeps for each thread, taken along to where the rest of the work is done.

One rule: a thread in torch's default state has nothing to take along, and pays nothing for it.
"""

from __future__ import annotations

from types import TracebackType

import torch

from zrpc.runtime.recording import recorder


class ThreadState:
    """Grad mode, inference mode and distributed autograd context of the thread that makes it.

    A context manager: within, the state is that one.
    """

    __slots__ = ("_grad", "_inference", "_inside", "_recorder")

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._recorder = recorder.get()

    def __enter__(self) -> None:
        inference = torch.inference_mode(self._inference)
        inference.__enter__()
        self._inside = inference, torch.is_grad_enabled(), recorder.set(self._recorder)
        torch._C._set_grad_enabled(self._grad)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        inference, grad, token = self._inside
        recorder.reset(token)
        torch._C._set_grad_enabled(grad)
        inference.__exit__(kind, error, traceback)


def capture() -> ThreadState | None:
    """The state of this thread; None if it is torch's default."""
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and recorder.get() is None:
        return None
    return ThreadState()
