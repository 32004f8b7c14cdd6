"""A device for tests that is none: it has memory of its own kind and its own allocator, and every machine has it.

Torch leaves one kind of device (PrivateUse1) to others, and a backend for it may be written in Python. Tensors of this
one have storages on "hostdevice:0", so no operator of the CPU takes them, and `.cpu()` and `.to()` copy, as with an
accelerator. Underneath it is memory of the host: operators run by way of CPU tensors that look at the same bytes.

One rule: this belongs in a process of its own. Torch cannot forget a device again, and starts a thread for it.
"""

from __future__ import annotations

import ctypes
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "hostdevice"
aten: Any = torch.ops.aten
copies: Counter[str] = Counter()
"""Copies between the CPU and the device, by direction."""
_memory: dict[int, Any] = {}
"""What was allocated, by address: never given back, since torch does not say when it could be."""


def _contiguous(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for index in range(len(shape) - 1, 0, -1):
        strides[index - 1] = strides[index] * max(shape[index], 1)
    return strides


def allocate(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the device, of memory that nothing else uses."""
    count = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    size = count * dtype.itemsize
    block = (ctypes.c_char * max(size, 1))()
    address = ctypes.addressof(block)
    _memory[address] = block
    found: torch.Tensor = torch._C._acc.create_empty_tensor(tuple(shape), dtype)
    found.untyped_storage()._swap_data_ptr_(  # type: ignore[attr-defined]
        torch._C._construct_storage_from_data_pointer(address, torch.device(NAME, 0), size)
    )
    return found.as_strided_(tuple(shape), tuple(strides), 0)


def seen_by_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor that looks at the same bytes."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    block = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(block, dtype=torch.uint8)
    return torch.empty(0, dtype=tensor.dtype).set_(
        whole.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def is_here(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def anywhere(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator: run it on the CPU, and bring back what is new; views look at the device's memory."""
    known: dict[int, torch.Tensor] = {}

    def lend(value: Any) -> Any:
        if is_here(value):
            lent = seen_by_cpu(value)
            known[lent.untyped_storage().data_ptr()] = value
            return lent
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def bring(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        whose = known.get(value.untyped_storage().data_ptr()) if value.untyped_storage().nbytes() else None
        if whose is not None:
            return whose.detach().as_strided_(value.shape, value.stride(), value.storage_offset())
        return to_device(value)

    changed = [
        argument
        for argument, declared in zip(args, op._schema.arguments, strict=False)
        if declared.alias_info is not None and declared.alias_info.is_write
    ]
    found = op(*tree_map(lend, args), **tree_map(lend, kwargs))
    if changed and len(op._schema.returns) == 1:
        return changed[0]
    return tree_map(bring, found)


def to_device(value: torch.Tensor) -> torch.Tensor:
    """A copy on the device of a CPU tensor."""
    found = allocate(value.shape, value.stride(), value.dtype)
    seen_by_cpu(found).copy_(value)
    return found


def empty(size: Sequence[int], dtype: Any = None, **_: Any) -> torch.Tensor:
    return allocate(size, _contiguous(size), dtype or torch.get_default_dtype())


def empty_strided(size: Sequence[int], stride: Sequence[int], dtype: Any = None, **_: Any) -> torch.Tensor:
    return allocate(size, stride, dtype or torch.get_default_dtype())


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    copies[f"{source.device.type} to {target.device.type}"] += 1
    here, there = (seen_by_cpu(value) if is_here(value) else value for value in (source, target))
    there.copy_(here)
    return target


def as_strided(tensor: torch.Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> torch.Tensor:
    offset = tensor.storage_offset() if storage_offset is None else storage_offset
    return tensor.detach().as_strided_(size, stride, offset)


def view(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    looked = seen_by_cpu(tensor).view(tuple(size))
    return tensor.detach().as_strided_(looked.shape, looked.stride(), tensor.storage_offset())


def set_storage(
    tensor: torch.Tensor, storage: Any, offset: int, size: Sequence[int], stride: Sequence[int] = ()
) -> torch.Tensor:
    """`tensor` looks at a storage from now on. Torch lets nobody exchange a storage from Python, so it is another one over
    the same memory."""
    untyped = storage if isinstance(storage, torch.UntypedStorage) else storage.untyped()
    tensor.untyped_storage()._swap_data_ptr_(  # type: ignore[attr-defined]
        torch._C._construct_storage_from_data_pointer(untyped.data_ptr(), torch.device(NAME, 0), untyped.nbytes())
    )
    return tensor.as_strided_(tuple(size), tuple(stride or _contiguous(size)), offset)


def local_scalar(tensor: torch.Tensor) -> Any:
    return seen_by_cpu(tensor).item()


def start() -> list[torch.library.Library]:
    """Make the device known to torch. What is returned must be kept."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("empty.memory_format", empty),
        ("empty_strided", empty_strided),
        ("_copy_from", copy_from),
        ("as_strided", as_strided),
        ("view", view),
        ("set_.source_Storage_storage_offset", set_storage),
        ("_local_scalar_dense", local_scalar),
    ):
        library.impl(name, function, "PrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rest.fallback(anywhere, "PrivateUse1")
    return [library, rest]
