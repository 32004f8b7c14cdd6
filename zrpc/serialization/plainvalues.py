"""Plain values without a pickle: a few whole tensors, numbers and texts, as most calls have them.

One rule: what is not plain is left to the pickle, silently; reading believes nothing, as everywhere.

Measured inside of real calls, a pickle of two small tensors costs 15 us to write and as much to read, which is twice what
it costs in a loop by itself: it runs through much code. This takes half of that. A body is

    | 0x03 | form u8 | msgpack array of items |

    form 0   a value: its item            form 2   a list of items
    form 1   a tuple of items             form 3   a call: the name (module, qualified name) of its function, the arguments

An item is nil, a bool, an int, a float, a text, or a tensor: an array of its dtype's number and its sizes. A tensor is the
whole of its storage, which is the message's next buffer. What buffers are left are none of the value's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import FunctionType
from typing import Any, Final

import msgpack
import numpy as np
import torch

from zrpc.errors import FrameError, NotImportable
from zrpc.serialization.dtypes import DTYPE_NUMBERS, NUMPY_DTYPES
from zrpc.serialization.rebuild import SMALL_BYTES, StorageReader
from zrpc.serialization.tensors import COPY_BYTES
from zrpc.wire.envelope import Buffer

PLAIN: Final = 0x03
MAX_ITEMS: Final = 16
"""A value of more is left to the pickle, which is quicker for each when there are many."""
MAX_TEXT: Final = 4096

_ALONE, _TUPLE, _LIST, CALL = range(4)
_HEADS: Final = [bytes((PLAIN, form)) for form in range(4)]
_NUMBERS: Final = {dtype: number for dtype, number in DTYPE_NUMBERS.items() if number in NUMPY_DTYPES}
_SCALARS: Final = frozenset((int, float, bool, type(None), str))
_Tensor: Final = torch.Tensor
_pack = msgpack.packb
_unpack = msgpack.unpackb
_ndarray: Final = np.ndarray
_from_numpy: Final = torch.from_numpy
_FORMS: Final[dict[type, int]] = {tuple: _TUPLE, list: _LIST}


def dumps(value: Any) -> tuple[bytes, tuple[Buffer, ...]] | None:
    """The body and the buffers of a value; None when it is not plain."""
    form = _FORMS.get(type(value), _ALONE)
    return _write(_HEADS[form], [], value if form else (value,))


def dumps_call(func: Any, args: tuple[Any, ...]) -> tuple[bytes, tuple[Buffer, ...]] | None:
    """The same of a call; None when its function cannot be found again by its name, too."""
    if type(func) is not FunctionType:
        return None
    module, name = func.__module__, func.__qualname__
    if module == "__main__" or module == "__mp_main__":
        return None
    if getattr(sys.modules.get(module), name, None) is not func:
        return None
    return _write(_HEADS[CALL], [module, name], args)


def _write(head: bytes, items: list[Any], values: Sequence[Any]) -> tuple[bytes, tuple[Buffer, ...]] | None:
    if len(values) > MAX_ITEMS:
        return None
    buffers: list[Buffer] = []
    places: set[int] = set()
    for value in values:
        kind = type(value)
        if kind is _Tensor:
            number = _NUMBERS.get(value.dtype)
            if number is None or value.requires_grad or not value.is_contiguous():
                return None
            try:
                array = value.numpy()
            except (RuntimeError, TypeError):  # it is sparse, a conjugate, or of another device
                return None
            size = array.nbytes
            if not size or value.untyped_storage().nbytes() != size:
                return None
            places.add(value.data_ptr())
            items.append((number, *array.shape))
            buffers.append(array.tobytes() if size <= COPY_BYTES else memoryview(array.reshape(-1).view(np.uint8)))
        elif kind in _SCALARS and (kind is not str or len(value) <= MAX_TEXT):
            items.append(value)
        else:
            return None
    if len(places) != len(buffers):
        return None  # two on one storage
    try:
        return head + _pack(items), tuple(buffers)  # which the garbage collector soon leaves out
    except (OverflowError, ValueError):  # an int of more than 64 bits; half of a character
        return None


def is_plain(body: Buffer) -> bool:
    """Whether a body is one of these."""
    return len(body) > 2 and body[0] == PLAIN


def loads(body: Buffer, buffers: Sequence[Buffer]) -> Any:
    """The value in a body; of a call, a tuple (module, qualified name, arguments). Raises `FrameError`."""
    try:
        items = _unpack(body[2:], max_str_len=MAX_TEXT, max_bin_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise _fail(f"it is not msgpack ({type(error).__name__})") from None
    form = body[1]
    if type(items) is not list or form > CALL:
        raise _fail("it has no known form")
    name: list[Any] = []
    if form == CALL:
        name, items = items[:2], items[2:]
        if len(name) != 2 or type(name[0]) is not str or type(name[1]) is not str:
            raise _fail("a call without a name")
    _read(items, buffers)
    if form == _TUPLE:
        return tuple(items)
    if form == _LIST:
        return items
    if form == CALL:
        return name[0], name[1], tuple(items)
    if len(items) != 1:
        raise _fail(f"{len(items)} items for one value")
    return items[0]


def loads_call(body: bytes, buffers: Sequence[Buffer]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function, the arguments and the keyword arguments of a call: runs what the sender names, if it is imported.

    Raises `NotImportable`, `FrameError`.
    """
    module, name, args = loads(body, buffers)
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise NotImportable(module, name, str(error)) from error
    return found, args, {}


def _read(items: list[Any], buffers: Sequence[Buffer]) -> None:
    """Put the tensors into their places."""
    used = 0
    for index, item in enumerate(items):
        kind = type(item)
        if kind is list:
            if used >= len(buffers) or not item:
                raise _fail("a tensor without a buffer")
            try:
                buffer = buffers[used]
                if len(buffer) <= SMALL_BYTES:  # as `StorageReader.tensor` does it, without one
                    array: Any = _ndarray(item[1:], NUMPY_DTYPES[item[0]], bytearray(buffer))
                    if array.nbytes != len(buffer):
                        raise _fail(f"shape {item[1:]!r:.200} is not all of a storage of {len(buffer)} bytes")
                    items[index] = _from_numpy(array)
                else:
                    items[index] = StorageReader(buffers).tensor(used, item[0], tuple(item[1:]))
            except FrameError:
                raise
            except Exception as error:  # numpy's, for a dtype or a shape that is none
                raise _fail(f"{error} ({type(error).__name__})") from None
            used += 1
        elif kind not in _SCALARS:
            raise _fail(f"an item of type {kind.__name__}")


def _fail(why: str) -> FrameError:
    return FrameError(f"not a plain value: {why}")
