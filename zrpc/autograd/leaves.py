"""Leaves: what becomes of a gradient that has reached a tensor that nothing was computed for.

One rule: a leaf's gradient goes into the context, and `.grad` is left alone; the hooks that torch would have called on
the way to `.grad` are called once, with the whole gradient.

A pass may reach a leaf in several runs of the engine. Hooks of the leaf are then held back while the parts are computed
(`held_back`), and called when the last part is there (`whole`). Of the hooks on the node that would accumulate into
`.grad` the pre-hooks may change the gradient, and the post-hooks see it; `register_post_accumulate_grad_hook` asks for
`.grad`, which there is none of, and is not called.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from zrpc.autograd.functions import Node


class _HoldingBack(threading.local):
    leaves: frozenset[int] = frozenset()
    """Ids of the leaves whose hooks do not run on this thread now."""


_holding_back = _HoldingBack()


class _Guarded:
    """A leaf's hook, which does nothing while its leaf's hooks are held back on this thread."""

    __slots__ = ("hook", "leaf")

    def __init__(self, hook: Any, leaf: int) -> None:
        self.hook = hook
        self.leaf = leaf

    def __call__(self, gradient: torch.Tensor) -> Any:
        return None if self.leaf in _holding_back.leaves else self.hook(gradient)


@contextlib.contextmanager
def held_back(leaves: Iterable[torch.Tensor]) -> Iterator[None]:
    """Keep the hooks of these leaves from running on this thread."""
    hooked = [leaf for leaf in leaves if leaf._backward_hooks]
    if not hooked:
        yield
        return
    for leaf in hooked:
        hooks: dict[int, Any] = leaf._backward_hooks  # type: ignore[assignment]
        for key, hook in list(hooks.items()):
            if not isinstance(hook, _Guarded):
                hooks[key] = _Guarded(hook, id(leaf))
    saved, _holding_back.leaves = _holding_back.leaves, frozenset(map(id, hooked))
    try:
        yield
    finally:
        _holding_back.leaves = saved


def whole(leaf: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient as the leaf's hooks leave it, when they were held back for its parts."""
    hooks: dict[int, Any] = leaf._backward_hooks or {}
    for hook in list(hooks.values()):
        changed = hook(gradient)
        if changed is not None:
            gradient = changed
    return gradient


def _hooks_of(register: Any) -> list[Any]:
    """The hooks that were registered in a node before, found by registering one more."""
    handle = register(_nothing)
    try:
        hooks = handle.hooks_dict_ref()
        return [hook for hook in hooks.values() if hook is not _nothing]
    finally:
        handle.remove()


def _nothing(*_: Any) -> None:
    return None


def before_accumulation(node: Node, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient as the pre-hooks of the accumulating node leave it."""
    for hook in _hooks_of(node.register_prehook):
        changed = hook((gradient,))
        if changed is not None:
            gradient = changed[0] if isinstance(changed, tuple) else changed
    return gradient


def after_accumulation(node: Node, gradient: torch.Tensor) -> None:
    """Call the post-hooks of the accumulating node."""
    for hook in _hooks_of(node.register_hook):
        hook((), (gradient,))


def add_up(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of two gradients, either of which may be sparse, or missing."""
    if first is None or second is None:
        return second if first is None else first
    if first.layout is not torch.strided and second.layout is torch.strided:
        first, second = second, first  # torch adds sparse to dense, and not the other way round
    return first + second


def owned(gradient: torch.Tensor, is_shared: bool) -> torch.Tensor:
    """The gradient, or a copy when it is shared, or anything else may use its memory: what is kept may be changed."""
    if is_shared or gradient.layout is not torch.strided or gradient.is_nested:
        return gradient.clone() if is_shared else gradient
    storage = gradient.untyped_storage()
    # Two: the gradient's, and the one of `storage` here.
    is_alone = torch._C._storage_Use_Count(storage._cdata) <= 2
    return (
        gradient if is_alone and 0 not in gradient.stride() else gradient.clone(memory_format=torch.contiguous_format)
    )
