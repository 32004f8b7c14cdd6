"""How a tensor arrives: memory of its own, filled from the message's buffers.

One rule: nothing that the message says is believed. Indices, shapes, strides, offsets and sizes are checked against the
buffers that are really there, before any memory is allocated for them; no message makes its reader allocate more than a
small multiple of its own size. What does not fit raises `FrameError`.

Tensors that arrive are writable and own their memory: the received frames are only read. A small tensor lives in a
bytearray, a large one in memory that torch allocated, filled by one copy that does not hold the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch._utils import _set_obj_state

from zrpc.errors import FrameError
from zrpc.serialization.dtypes import DTYPES, LAYOUTS, NUMPY_DTYPES, PACKED_BITS
from zrpc.serialization.tensors import CONJUGATED, NEGATED, REQUIRES_GRAD
from zrpc.wire.envelope import Buffer

SMALL_BYTES: Final = 16 * 1024
"""Up to here a bytearray is the quicker home of a tensor (1.6 against 3.5 us at 32 bytes); above, the alignment and the
lock-free copy of torch's allocation count more."""

_ALL_FLAGS: Final = REQUIRES_GRAD | CONJUGATED | NEGATED
_QUANTIZED: Final = frozenset(dtype for dtype in DTYPES.values() if str(dtype).startswith("torch.q"))
_MAX_I64: Final = (1 << 63) - 1
_ndarray = np.ndarray
_from_numpy = torch.from_numpy


def _fail(why: str) -> FrameError:
    return FrameError(f"not a tensor: {why}")


def _size_of(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def own_bytes(buffer: Buffer) -> Any:
    """The bytes of a buffer in writable memory that is used by nothing else, as a numpy array of bytes.

    A view of memory that says `is_given` is such memory already; all else is copied.
    """
    size = _size_of(buffer)
    if size <= SMALL_BYTES:
        return np.frombuffer(bytearray(buffer), np.uint8) if size else np.empty(0, np.uint8)
    if type(buffer) is memoryview and getattr(buffer.obj, "is_given", False):
        return np.frombuffer(buffer, np.uint8)
    array = torch.empty(size, dtype=torch.uint8).numpy()
    np.copyto(array, np.frombuffer(buffer, np.uint8))
    return array


def _check_sizes(values: Any, what: str) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > 1024:
        raise _fail(f"{what} is not a tuple of at most 1024 numbers")
    for value in values:
        if type(value) is not int or not 0 <= value <= _MAX_I64:
            raise _fail(f"{what} holds {value!r:.80}")
    return values


def _dtype(number: Any) -> torch.dtype:
    dtype = DTYPES.get(number) if type(number) is int else None
    if dtype is None:
        raise _fail(f"dtype {number!r:.80} is not known to this torch ({torch.__version__})")
    return dtype


def _plain_dtype(number: Any) -> torch.dtype:
    """A dtype that needs no quantizer: torch makes tensors of the others without one, and reads what is not there."""
    dtype = _dtype(number)
    if dtype in _QUANTIZED:
        raise _fail(f"dtype {dtype} needs a quantizer")
    return dtype


def _check_flags(flags: Any) -> int:
    if type(flags) is not int or flags & ~_ALL_FLAGS:
        raise _fail(f"unknown flags {flags!r:.80}")
    return flags


def _check_tensor(value: Any, what: str) -> torch.Tensor:
    if type(value) is not torch.Tensor:
        raise _fail(f"{what} is not a tensor")
    return value


def _device(text: Any) -> torch.device:
    if type(text) is not str or len(text) > 64:
        raise _fail("its device is not a text")
    try:
        return torch.device(text)
    except RuntimeError:
        raise _fail(f"its device {text!r} is not known to this torch") from None


def _finish(tensor: torch.Tensor, flags: int) -> torch.Tensor:
    if flags & CONJUGATED:
        tensor = tensor.conj()
    if flags & NEGATED:
        tensor = torch._neg_view(tensor)
    if flags & REQUIRES_GRAD:
        tensor.requires_grad_(True)
    return tensor


def _require_extent(shape: tuple[int, ...], strides: tuple[int, ...], offset: int, elements: int) -> int:
    """Check that all elements lie in the first `elements` of the storage; return how many the tensor has."""
    if len(shape) != len(strides):
        raise _fail(f"{len(shape)} sizes but {len(strides)} strides")
    count = 1
    last = offset
    for size, stride in zip(shape, strides, strict=True):
        count *= size
        last += (size - 1) * stride
    if count > _MAX_I64 or (count and not 0 <= last < elements) or offset > _MAX_I64:
        raise _fail(f"shape {shape!r:.200}, strides {strides!r:.200} at {offset} do not fit {elements} elements")
    return count


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _is_increasing(indices: torch.Tensor) -> bool:
    """Whether each column of indices is above the one before it. torch's own check takes ten times as long, and more where
    its threads have to wait for each other."""
    rows = indices.numpy()
    before, after = rows[:, :-1], rows[:, 1:]
    above = np.zeros(before.shape[1], np.bool_)
    for row in range(len(rows) - 1, -1, -1):
        above = (before[row] < after[row]) | ((before[row] == after[row]) & above)
    return bool(above.all())


class StorageReader:
    """The storages of one received message, made when a tensor first asks for them.

    `lows` are the low bounds of the spans, None when all are 0. `recorded` has the tensors that were part of an autograd
    graph on the sender, by their number in the message.
    """

    __slots__ = ("_bases", "_buffers", "_lows", "_moved", "recorded")

    def __init__(self, buffers: Sequence[Buffer], lows: Sequence[int] | None = None) -> None:
        self._buffers = buffers
        self._lows = lows
        self._bases: dict[int, Any] = {}
        self._moved: dict[tuple[int, torch.device], torch.UntypedStorage] = {}
        self.recorded: dict[int, torch.Tensor] = {}

    # ---------------------------------------------------------------------------------------- the usual

    def tensor(self, index: int, number: int, shape: tuple[int, ...]) -> torch.Tensor:
        """A contiguous tensor that is the whole of its storage."""
        if index in self._bases or self._lows is not None or index < 0:
            return self._whole(index, number, shape)
        buffer = self._buffers[index]
        size = _size_of(buffer)
        if size > SMALL_BYTES:
            return self._whole(index, number, shape)
        # numpy checks that the shape fits the memory, and raises if it does not
        array: Any = _ndarray(shape, NUMPY_DTYPES[number], bytearray(buffer))
        if array.nbytes != size:
            raise _fail(f"shape {shape!r:.200} is not all of a storage of {size} bytes")
        tensor = _from_numpy(array)
        self._bases[index] = tensor
        return tensor

    def leaf(self, index: int, number: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The same with requires_grad set."""
        return self.tensor(index, number, shape).requires_grad_(True)

    def _whole(self, index: int, number: int, shape: tuple[int, ...]) -> torch.Tensor:
        base = self._base(index)
        dtype = NUMPY_DTYPES[number]
        size = base.nbytes
        count = size // dtype.itemsize
        if _require_extent(_check_sizes(shape, "its shape"), (0,) * len(shape), 0, max(count, 1)) != count:
            raise _fail(f"shape {shape!r:.200} is not all of a storage of {size} bytes")
        tensor = torch.empty(0, dtype=DTYPES[number])
        return tensor.set_(base.untyped_storage(), 0, shape, _contiguous(shape))

    # ---------------------------------------------------------------------------------------- the others

    def view(
        self,
        index: int,
        number: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        flags: int,
        device: str | None,
    ) -> torch.Tensor:
        """Any strided tensor that is not quantized."""
        dtype = _plain_dtype(number)
        flags = _check_flags(flags)
        shape = _check_sizes(shape, "its shape")
        strides = _check_sizes(strides, "its strides")
        storage, offset = self._located(index, 0 if 0 in shape else offset, dtype.itemsize, device, 0 in shape)
        _require_extent(shape, strides, offset, storage.nbytes() // dtype.itemsize)
        tensor = torch.empty(0, dtype=dtype, device=storage.device)
        tensor.set_(storage, offset, shape, strides)
        return _finish(tensor, flags)

    def meta(self, number: int, shape: tuple[int, ...], strides: tuple[int, ...], flags: int) -> torch.Tensor:
        """A tensor without memory."""
        shape = _check_sizes(shape, "its shape")
        strides = _check_sizes(strides, "its strides")
        _require_extent(shape, strides, 0, _MAX_I64 // 32)
        tensor = torch.empty_strided(shape, strides, dtype=_plain_dtype(number), device="meta")
        return _finish(tensor, _check_flags(flags))

    def quantized(
        self,
        index: int,
        number: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        device: str | None,
        quantizer: tuple[Any, ...],
    ) -> torch.Tensor:
        """A quantized tensor, per tensor (scale, zero point) or per channel (scales, zero points, axis)."""
        dtype = _dtype(number)
        bits = PACKED_BITS.get(number, dtype.itemsize * 8)
        shape = _check_sizes(shape, "its shape")
        strides = _check_sizes(strides, "its strides")
        storage, offset = self._located(index, 0 if 0 in shape else offset, dtype.itemsize, device, 0 in shape)
        _require_extent(shape, strides, offset, storage.nbytes() * 8 // bits)
        where = storage.device
        if type(quantizer) is not tuple or len(quantizer) not in (2, 3):
            raise _fail("its quantizer is not known")
        if len(quantizer) == 2:
            scale, zero_point = quantizer
            tensor = torch._empty_affine_quantized(
                [0], scale=float(scale), zero_point=int(zero_point), dtype=dtype, device=where
            )
        else:
            scales = _check_tensor(quantizer[0], "its scales")
            zero_points = _check_tensor(quantizer[1], "its zero points")
            axis = quantizer[2]
            if type(axis) is not int or not 0 <= axis < len(shape) or not scales.dim() == zero_points.dim() == 1:
                raise _fail("its quantizer does not fit its shape")
            if not scales.numel() == zero_points.numel() == shape[axis]:
                raise _fail("it has not one scale and zero point for each channel")
            # No memory for the data yet: only the axis must have its size when the quantizer is made.
            empty = [0] * len(shape)
            empty[axis] = shape[axis]
            tensor = torch._empty_per_channel_affine_quantized(
                empty, scales=scales, zero_points=zero_points, axis=axis, dtype=dtype, device=where
            )
        return tensor.set_(storage, offset, shape, strides)

    def sparse_coo(self, indices: Any, values: Any, shape: Any, coalesced: bool, flags: int) -> torch.Tensor:
        """A COO tensor. torch checks that every index is inside of the shape."""
        tensor = torch.sparse_coo_tensor(
            _check_tensor(indices, "its index tensor"),
            _check_tensor(values, "its value tensor"),
            _check_sizes(shape, "its shape"),
            check_invariants=True,
        )
        if coalesced is True:
            if not _is_increasing(indices):
                raise _fail("it is called coalesced, but its indices are not in order")
            tensor = tensor._coalesced_(True)
        return _finish(tensor, _check_flags(flags) & REQUIRES_GRAD)

    def sparse_compressed(
        self, layout: int, compressed: Any, other: Any, values: Any, shape: Any, flags: int
    ) -> torch.Tensor:
        """A CSR, CSC, BSR or BSC tensor. torch checks its invariants."""
        if layout not in (2, 3, 4, 5):
            raise _fail(f"layout {layout!r:.80} is not a compressed one")
        tensor = torch.sparse_compressed_tensor(
            _check_tensor(compressed, "its compressed indices"),
            _check_tensor(other, "its plain indices"),
            _check_tensor(values, "its value tensor"),
            _check_sizes(shape, "its shape"),
            layout=LAYOUTS[layout],
            check_invariants=True,
        )
        return _finish(tensor, _check_flags(flags) & REQUIRES_GRAD)

    def nested(self, parts: Any, number: int, flags: int, device: Any) -> torch.Tensor:
        """A nested tensor of the strided layout."""
        if type(parts) is not list:
            raise _fail("its parts are not a list")
        checked = [_check_tensor(part, "its part") for part in parts]
        tensor = torch.nested.nested_tensor(checked, dtype=_dtype(number), device=_device(device))
        return _finish(tensor, _check_flags(flags) & REQUIRES_GRAD)

    def jagged(self, values: Any, offsets: Any, lengths: Any, ragged: int, flags: int) -> torch.Tensor:
        """A nested tensor of the jagged layout."""
        values = _check_tensor(values, "its values")
        offsets = _check_tensor(offsets, "its offsets")
        if offsets.dim() != 1 or offsets.dtype not in (torch.int64, torch.int32) or not offsets.numel():
            raise _fail("its offsets are not a vector of integers")
        if type(ragged) is not int or not 1 <= ragged <= values.dim():
            raise _fail("its ragged dimension is not one of its own")
        rows = offsets.numel() - 1
        starts = offsets[:-1]
        if lengths is None:
            sizes = offsets.diff()
        else:
            sizes = _check_tensor(lengths, "its lengths")
            if sizes.shape != (rows,) or sizes.dtype != offsets.dtype:
                raise _fail("it has not one length for each row")
        bound = values.shape[ragged - 1]
        if rows and bool(((starts < 0) | (sizes < 0) | (starts > bound) | (sizes > bound - starts)).any()):
            raise _fail("its rows reach beyond its values")
        tensor = torch.nested.nested_tensor_from_jagged(values, offsets, lengths, jagged_dim=ragged)
        return _finish(tensor, _check_flags(flags) & REQUIRES_GRAD)

    def parameter(self, data: Any, requires_grad: bool) -> torch.nn.Parameter:
        """A torch.nn.Parameter."""
        if not isinstance(data, torch.Tensor):
            raise _fail("the data of a parameter is not a tensor")
        return torch.nn.Parameter(data, requires_grad is True)

    def keep_recorded(self, place: Any, tensor: Any) -> torch.Tensor:
        """A tensor that was part of a graph on the sender. Whoever reads the message makes it part of one here."""
        if not isinstance(tensor, torch.Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            raise _fail("what is recorded is not a tensor that can have a gradient")
        if type(place) is not int or place in self.recorded or tensor.requires_grad:
            raise _fail(f"its place {place!r:.80} among the recorded tensors")
        self.recorded[place] = tensor
        return tensor

    def received(self) -> list[torch.Tensor]:
        """The recorded tensors, in their order. Raises `FrameError` if one is missing, or there twice."""
        count = len(self.recorded)
        tensors = [self.recorded[place] for place in range(count) if place in self.recorded]
        if len(tensors) != count or len({id(tensor) for tensor in tensors}) != count:
            raise _fail("the recorded tensors are not numbered from 0 on")
        return tensors

    def subclassed(self, cls: Any, plain: Any, requires_grad: bool, state: Any) -> torch.Tensor:
        """An instance of a subclass of torch.Tensor. Only the Python codec carries classes."""
        if not (isinstance(cls, type) and issubclass(cls, torch.Tensor)):
            raise _fail("its class is not one of tensors")
        tensor = torch.Tensor._make_subclass(cls, _check_tensor(plain, "its data"), requires_grad is True)
        if state:
            _set_obj_state(tensor, state)  # type: ignore[no-untyped-call]
        return tensor

    # ----------------------------------------------------------------------------------------- storages

    def _base(self, index: Any) -> torch.Tensor:
        """Storage `index` as one tensor of bytes."""
        if type(index) is not int or not 0 <= index < len(self._buffers):
            raise _fail(f"there is no buffer {index!r:.80} of {len(self._buffers)}")
        base: torch.Tensor | None = self._bases.get(index)
        if base is None:
            base = _from_numpy(own_bytes(self._buffers[index]))
            self._bases[index] = base
        elif base.dtype is not torch.uint8 or base.dim() != 1:
            # Made by `tensor`: the same memory, seen as bytes.
            base = base.detach().reshape(-1).view(torch.uint8)
            self._bases[index] = base
        return base

    def _located(
        self, index: int, offset: Any, itemsize: int, device: str | None, is_empty: bool
    ) -> tuple[torch.UntypedStorage, int]:
        """Storage `index` where `device` says, and an offset in it counted from where its span begins."""
        base = self._base(index)
        if type(offset) is not int or not 0 <= offset <= _MAX_I64:
            raise _fail(f"offset {offset!r:.80}")
        low = self._lows[index] if self._lows is not None and not is_empty else 0
        offset -= low // itemsize
        if low % itemsize or offset < 0:
            raise _fail(f"its offset is below the {low} bytes that were left out")
        storage = base.untyped_storage()
        if device is not None:
            storage = self._on_device(index, storage, _device(device))
        return storage, offset

    def _on_device(self, index: int, storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
        key = (index, device)
        moved = self._moved.get(key)
        if moved is None:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            try:
                moved = whole.to(device).untyped_storage()
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                raise _fail(
                    f"it lives on device {str(device)!r}, which this process does not have ({str(error)[:200]}). "
                    "Send tensor.cpu(), or map the device on the sender"
                ) from None
            self._moved[key] = moved
        return moved


RESOLVERS: Final[dict[str, Callable[..., Any]]] = {"recorded": StorageReader.keep_recorded} | {
    name: getattr(StorageReader, name)
    for name in (
        "tensor",
        "leaf",
        "view",
        "meta",
        "quantized",
        "sparse_coo",
        "sparse_compressed",
        "nested",
        "jagged",
        "parameter",
        "subclassed",
    )
}
"""The names (see `names`) that a StorageReader resolves."""
