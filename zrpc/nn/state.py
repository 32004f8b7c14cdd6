"""The state of a module that lives elsewhere, a part at a time.

One rule: however large the module, no more than two parts of it are on the way or in memory here because of this; what the
user keeps is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn

from zrpc.api import remote, rpc_async, rpc_sync
from zrpc.rref import RRef

PART_BYTES: Final = 64 << 20
"""Bytes of tensors in a part, unless one tensor has more: the size from which copying costs more than asking."""


class StateAtOwner:
    """The state of a module, on its owner: the names and tensors that were its at one time. The tensors are its own."""

    def __init__(self, module_rref: RRef[nn.Module]) -> None:
        self._items: dict[str, Any] = dict(module_rref.local_value().state_dict())

    def sizes(self) -> list[tuple[str, int]]:
        """Each name, with the bytes of its value; 0 for what is no tensor."""
        return [(name, value.nbytes if isinstance(value, torch.Tensor) else 0) for name, value in self._items.items()]

    def read(self, names: list[str]) -> list[Any]:
        """Copies of these values, on the CPU."""
        values = (self._items[name] for name in names)
        return [value.to("cpu", copy=True) if isinstance(value, torch.Tensor) else value for value in values]


class Incoming:
    """A state that arrives in parts at the owner of a module, which is changed when all are there."""

    def __init__(self, module_rref: RRef[nn.Module]) -> None:
        self._module = module_rref.local_value()
        self._items: dict[str, Any] = {}

    def add(self, part: dict[str, Any]) -> None:
        """One more part."""
        self._items.update(part)

    def finish(self, strict: bool) -> tuple[list[str], list[str]]:
        """Load all of it; the missing and the unexpected names. Raises as `Module.load_state_dict` does."""
        missing, unexpected = self._module.load_state_dict(self._items, strict=strict)
        return list(missing), list(unexpected)


def stream_state(module_rref: RRef[Any], part_bytes: int = PART_BYTES) -> Iterator[tuple[str, Any]]:
    """The names and values of a module's `state_dict()`, in its order, fetched a part at a time; tensors on the CPU.

    The names are those of the first moment; the tensors are read as they are when their part is sent, so do not train
    meanwhile. The next part is on its way while the caller works on one.
    """
    owner = module_rref.owner()
    state = remote(owner, StateAtOwner, (module_rref,))
    parts = split(state.rpc_sync().sizes(), part_bytes)
    coming = state.rpc_async().read(parts[0]) if parts else None
    for index, names in enumerate(parts):
        assert coming is not None
        values = coming.wait()
        coming = state.rpc_async().read(parts[index + 1]) if index + 1 < len(parts) else None
        yield from zip(names, values, strict=True)


def load_state(
    module_rref: RRef[Any],
    state: Mapping[str, Any] | Iterable[tuple[str, Any]],
    strict: bool = True,
    part_bytes: int = PART_BYTES,
) -> tuple[list[str], list[str]]:
    """Send names and values to the owner of a module, a part at a time, and have it load them when all are there.

    Returns the names that were missing and those that were not expected; `strict`: raises `RuntimeError` for these, as
    `Module.load_state_dict` does. The module changes at once or, if this fails, not at all.
    """
    owner = module_rref.owner()
    incoming = remote(owner, Incoming, (module_rref,))
    items = iter(state.items() if isinstance(state, Mapping) else state)
    under_way = None
    for part in parts_of(items, part_bytes):
        if under_way is not None:
            under_way.wait()
        under_way = rpc_async(owner, _add, (incoming, part))
    if under_way is not None:
        under_way.wait()
    return rpc_sync(owner, _finish, (incoming, strict))  # type: ignore[no-any-return]


def _add(incoming: RRef[Incoming], part: dict[str, Any]) -> None:
    incoming.local_value().add(part)


def _finish(incoming: RRef[Incoming], strict: bool) -> tuple[list[str], list[str]]:
    return incoming.local_value().finish(strict)


def split(sizes: Iterable[tuple[str, int]], part_bytes: int) -> list[list[str]]:
    """Names in parts of at most so many bytes, one name at least."""
    parts: list[list[str]] = []
    room = 0
    for name, size in sizes:
        if not parts or size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(name)
        room -= size
    return parts


def parts_of(items: Iterable[tuple[str, Any]], part_bytes: int) -> Iterator[dict[str, Any]]:
    """Items in parts of at most so many bytes, one item at least; tensors on the CPU."""
    part: dict[str, Any] = {}
    room = part_bytes
    for name, value in items:
        size = value.nbytes if isinstance(value, torch.Tensor) else 0
        if part and size > room:
            yield part
            part, room = {}, part_bytes
        part[name] = value.detach().cpu() if isinstance(value, torch.Tensor) else value
        room -= size
    if part:
        yield part
