"""How a tensor leaves: plain numbers in the pickle, and its storage's bytes beside it.

One rule: bytes belong to storages, not to tensors. Each distinct storage that is met while pickling gets the next
index; tensors say which storage, and where in it. So two views of one storage arrive as two views of one storage. Of
each storage one buffer is shipped: the span of bytes that its views in this message reach, from its lowest to its
highest byte, and no more. Offsets in the pickle count from the start of the storage as it is here; the span's low
bound goes along (see `pickler`), so that the reader can subtract it.

A large span is not copied: its buffer is a memoryview of the tensor's memory that keeps the storage alive. A small one
is copied at once, which is cheaper than a memoryview and lets the caller change the tensor after the call.

requires_grad travels, the graph does not: a tensor that is not a leaf arrives as a leaf that requires grad, as in
torch's RPC. While a message is *recorded* (for distributed autograd), the tensors that require grad are numbered and
collected instead, and travel without the flag: whoever reads them makes them part of a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch._utils import _get_obj_state, _set_obj_state

from zrpc.errors import EncodeError
from zrpc.serialization import names
from zrpc.serialization.dtypes import DTYPE_NUMBERS, LAYOUT_NUMBERS, NUMPY_DTYPES, PACKED_BITS
from zrpc.wire.envelope import Buffer

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]

COPY_BYTES: Final = 8 * 1024
"""Up to here a span is copied into bytes (0.4 us against 0.8 us for a memoryview, measured); the envelope would copy it
into the first frame anyhow."""

SPAN_ALIGNMENT: Final = 64
"""A span's low bound is rounded down to this, so that views keep their alignment in the receiver's copy."""

REQUIRES_GRAD: Final = 1
CONJUGATED: Final = 2
NEGATED: Final = 4

_STRIDED: Final = torch.strided
_FAST_NUMBERS: Final = {dtype: number for dtype, number in DTYPE_NUMBERS.items() if number in NUMPY_DTYPES}
_COMPRESSED_BY_ROW: Final = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED_BY_COLUMN: Final = (torch.sparse_csc, torch.sparse_bsc)


def cannot_send(tensor: torch.Tensor, why: str) -> EncodeError:
    """The error for a tensor that has no form on the wire. The pickler replaces the path by the true one."""
    return EncodeError("a tensor", type(tensor).__name__, why)


def flags_of(tensor: torch.Tensor) -> int:
    """The flags of a strided tensor."""
    return (
        (REQUIRES_GRAD if tensor.requires_grad else 0)
        | (CONJUGATED if tensor.is_conj() else 0)
        | (NEGATED if tensor.is_neg() else 0)
    )


def reduce_subclass(tensor: torch.Tensor) -> Reduced:
    """Reduce an instance of a subclass of torch.Tensor: its class, the plain tensor, requires_grad, its attributes."""
    with torch._C.DisableTorchFunctionSubclass():
        plain = tensor.detach().as_subclass(torch.Tensor)
        return names.subclassed, (type(tensor), plain, tensor.requires_grad, _get_obj_state(tensor))  # type: ignore[no-untyped-call]


def _without_graph(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, of the same class and with the same attributes, outside of any graph."""
    if type(tensor) is torch.Tensor or isinstance(tensor, torch.nn.Parameter):
        return tensor.detach()
    with torch._C.DisableTorchFunctionSubclass():
        plain = torch.Tensor._make_subclass(type(tensor), tensor.detach().as_subclass(torch.Tensor), False)
        _set_obj_state(plain, _get_obj_state(tensor))  # type: ignore[no-untyped-call]
        return plain


def has_own_reduction(cls: type) -> bool:
    """Whether a subclass of torch.Tensor brings its own way to pickle, or has its data elsewhere than in a storage."""
    return (
        getattr(cls, "__reduce_ex__", None) not in (torch.Tensor.__reduce_ex__, torch.nn.Parameter.__reduce_ex__)
        or getattr(cls, "__torch_dispatch__", None) is not torch.Tensor.__torch_dispatch__
    )


class StorageTable:
    """The storages of one message, in the order met. Reusable: `take` empties it."""

    __slots__ = ("_arrays", "_highs", "_indices", "_lows", "_storages", "recorded")

    def __init__(self) -> None:
        self._indices: dict[int, int] = {}
        # One entry a storage: the storage (kept alive), a numpy array over the whole of it or None, the span.
        self._storages: list[torch.UntypedStorage] = []
        self._arrays: list[Any] = []
        self._lows: list[int] = []
        self._highs: list[int] = []
        self.recorded: list[torch.Tensor] | None = None
        """Where the tensors that require grad are collected, while a message is recorded."""

    def __len__(self) -> int:
        return len(self._storages)

    def take(self) -> tuple[list[Buffer], list[int] | None]:
        """The buffers of all storages, and their low bounds (None when all are 0). The table is empty afterwards."""
        buffers: list[Buffer] = []
        moved = False
        for index, array in enumerate(self._arrays):
            if array is not None and not self._lows[index]:
                if array.nbytes <= COPY_BYTES:
                    buffers.append(array.tobytes())
                else:
                    buffers.append(memoryview(array.reshape(-1).view(np.uint8)))
                continue
            buffers.append(_span(self._storages[index], self._lows[index], self._highs[index]))
            moved = moved or self._lows[index] > 0
        lows = self._lows if moved else None
        self.clear()
        return buffers, lows

    def clear(self) -> None:
        """Forget all storages."""
        self._indices.clear()
        self._storages.clear()
        self._arrays.clear()
        self._lows = []
        self._highs = []

    # ------------------------------------------------------------------------------------------ reducers

    def _record(self, tensor: torch.Tensor, recorded: list[torch.Tensor]) -> Reduced:
        recorded.append(tensor)
        return names.recorded, (len(recorded) - 1, _without_graph(tensor))

    def reduce_subclass(self, tensor: torch.Tensor) -> Reduced:
        """Reduce an instance of a subclass of torch.Tensor."""
        if self.recorded is not None and tensor.requires_grad:
            return self._record(tensor, self.recorded)
        return reduce_subclass(tensor)

    def reduce_tensor(self, tensor: torch.Tensor) -> Reduced:
        """Reduce a torch.Tensor (that exact class, or a Parameter where its class does not matter)."""
        if self.recorded is not None and tensor.requires_grad:
            return self._record(tensor, self.recorded)
        number = _FAST_NUMBERS.get(tensor.dtype)
        if number is None or tensor.layout is not _STRIDED or not tensor.is_cpu or not tensor.is_contiguous():
            return self._reduce_other(tensor)
        try:
            if tensor.requires_grad:
                name = names.leaf
                array = tensor.detach().numpy()
            else:
                name = names.tensor
                array = tensor.numpy()
        except (RuntimeError, TypeError):  # negative or conjugate bit, nested, more dimensions than numpy has
            return self._reduce_other(tensor)
        storage = tensor.untyped_storage()
        size = array.nbytes
        if not size or storage.nbytes() != size or storage._cdata in self._indices:
            return self._reduce_other(tensor)
        index = len(self._storages)
        self._indices[storage._cdata] = index
        self._storages.append(storage)
        self._arrays.append(array)
        self._lows.append(0)
        self._highs.append(size)
        return name, (index, number, array.shape)

    def reduce_parameter(self, parameter: torch.nn.Parameter) -> Reduced:
        """Reduce a torch.nn.Parameter to one."""
        if vars(parameter):
            return reduce_subclass(parameter)
        return names.parameter, (parameter.detach(), parameter.requires_grad)

    def reduce_jagged(self, tensor: Any) -> Reduced:
        """Reduce a nested tensor of the jagged layout."""
        if self.recorded is not None and tensor.requires_grad:
            return self._record(tensor, self.recorded)
        flags = REQUIRES_GRAD if tensor.requires_grad else 0
        plain = tensor.detach()
        lengths = plain.lengths()
        return names.jagged, (plain.values(), plain.offsets(), lengths, plain._ragged_idx, flags)

    def _reduce_other(self, tensor: torch.Tensor) -> Reduced:
        number = DTYPE_NUMBERS.get(tensor.dtype)
        if number is None:
            raise cannot_send(tensor, f"its dtype {tensor.dtype} has no number on the wire")
        if tensor.layout is not _STRIDED:
            return self._reduce_sparse(tensor)
        if tensor.is_nested:
            parts = list(tensor.detach().unbind())
            flags = REQUIRES_GRAD if tensor.requires_grad else 0
            return names.nested, (parts, number, flags, str(tensor.device))
        if tensor.is_meta:
            return names.meta, (number, tuple(tensor.shape), tensor.stride(), flags_of(tensor))
        if tensor.is_quantized:
            return self._reduce_quantized(tensor, number)
        index = self._place(tensor)
        device = None if tensor.is_cpu else str(tensor.device)
        return names.view, (
            index,
            number,
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.stride(),
            flags_of(tensor),
            device,
        )

    def _reduce_sparse(self, tensor: torch.Tensor) -> Reduced:
        flags = REQUIRES_GRAD if tensor.requires_grad else 0
        plain = tensor.detach()
        shape = tuple(tensor.shape)
        if tensor.layout is torch.sparse_coo:
            return names.sparse_coo, (plain._indices(), plain._values(), shape, plain.is_coalesced(), flags)
        if tensor.layout in _COMPRESSED_BY_ROW:
            compressed, other = plain.crow_indices(), plain.col_indices()
        elif tensor.layout in _COMPRESSED_BY_COLUMN:
            compressed, other = plain.ccol_indices(), plain.row_indices()
        else:
            raise cannot_send(tensor, f"tensors of layout {tensor.layout} have no form on the wire; use to_dense()")
        layout = LAYOUT_NUMBERS[tensor.layout]
        return names.sparse_compressed, (layout, compressed, other, plain.values(), shape, flags)

    def _reduce_quantized(self, tensor: torch.Tensor, number: int) -> Reduced:
        scheme = tensor.qscheme()
        quantizer: tuple[Any, ...]
        if scheme == torch.per_tensor_affine:
            quantizer = (tensor.q_scale(), tensor.q_zero_point())
        elif scheme in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            quantizer = (
                tensor.q_per_channel_scales(),
                tensor.q_per_channel_zero_points(),
                tensor.q_per_channel_axis(),
            )
        else:
            raise cannot_send(tensor, f"its quantization scheme {scheme} cannot be rebuilt; dequantize() it")
        if number in PACKED_BITS and not tensor.is_contiguous():
            raise cannot_send(tensor, f"a view of {tensor.dtype}, which packs elements into bytes; dequantize() it")
        index = self._place(tensor, PACKED_BITS.get(number, 0))
        device = None if tensor.is_cpu else str(tensor.device)
        return names.quantized, (
            index,
            number,
            tensor.storage_offset(),
            tuple(tensor.shape),
            tensor.stride(),
            device,
            quantizer,
        )

    def _place(self, tensor: torch.Tensor, packed_bits: int = 0) -> int:
        """The index of the tensor's storage, whose span now covers the tensor."""
        try:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if storage.nbytes() and not storage.data_ptr():
                raise RuntimeError("its storage has no memory")
        except (RuntimeError, NotImplementedError) as error:
            raise cannot_send(tensor, f"it has no storage that can be read ({error})") from None
        low, high = _reach(tensor, storage.nbytes(), packed_bits)
        index = self._indices.get(key)
        if index is None:
            index = len(self._storages)
            self._indices[key] = index
            self._storages.append(storage)
            self._arrays.append(None)
            self._lows.append(low)
            self._highs.append(high)
        elif self._arrays[index] is None and low < high:  # else: all of it goes already, or nothing is needed
            if self._lows[index] == self._highs[index]:
                self._lows[index], self._highs[index] = low, high
            else:
                self._lows[index] = min(self._lows[index], low)
                self._highs[index] = max(self._highs[index], high)
        return index


def _reach(tensor: torch.Tensor, storage_bytes: int, packed_bits: int) -> tuple[int, int]:
    """The bytes [low, high) of its storage that a tensor can reach; (0, 0) for a tensor with no elements."""
    if not tensor.numel():
        return 0, 0
    if packed_bits:
        return 0, storage_bytes
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    itemsize = tensor.element_size()
    low = first * itemsize
    high = (last + 1) * itemsize
    if high > storage_bytes:
        raise cannot_send(tensor, "it reaches beyond its storage, which was resized under it")
    return low - low % SPAN_ALIGNMENT, high


def _span(storage: torch.UntypedStorage, low: int, high: int) -> Buffer:
    """The bytes [low, high) of a storage: a copy if small or on another device, else a view of its memory."""
    if low == high:
        return b""
    # An uint8 tensor over the storage shows its memory whatever dtype its tensors have.
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device)
    whole.set_(storage, low, (high - low,), (1,))
    # A storage on an accelerator is copied to the host: the bytes travel the same way from there on.
    array = whole.cpu().numpy()
    if high - low <= COPY_BYTES:
        return bytes(array.tobytes())
    return array.data
