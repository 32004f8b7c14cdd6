"""Exceptions as messages: what a worker says of a function that raised, and what its caller raises then.

One rule: an exception travels as text, never as a pickle. It is a msgpack map; every part is bounded and checked:

    "m" module, "q" qualified name of its type     "x" repr of it, or its text for zrpc's own
    "t" traceback                                   "i" id, "n" name of the worker
    "f" for zrpc's own errors: their fields that are plain values

The caller raises the same type, if it has that type imported already and can make one from a text; else `RemoteFault`.
No module is imported for it, and nothing but a subclass of Exception is made. The text has the form that torch's RPC
gives it, since other tools read it: "On WorkerInfo(id=1, name=worker1):", the exception, the traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import msgpack

from zrpc.errors import FrameError, RemoteFault, ZrpcError
from zrpc.wire.envelope import Buffer

MAX_TEXT: Final = 16 * 1024
MAX_TRACEBACK: Final = 64 * 1024
_MAX_NAME: Final = 1024
_MAX_FIELDS: Final = 32
_MAX_ITEMS: Final = 1024
_MAX_BODY: Final = 4 * (MAX_TEXT * (_MAX_FIELDS + 1) + MAX_TRACEBACK)
_HEAP_TYPE: Final = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class made by a class statement."""
_CUT: Final = "\n... (cut) ...\n"


# ------------------------------------------------------------------------------------------------ leaving


def encode_failure(error: BaseException, worker_id: int, worker_name: str) -> bytes:
    """The body that tells of `error`, raised on this worker. Never raises, whatever the exception's own methods do."""
    cls = type(error)
    is_own = isinstance(error, ZrpcError)
    # An exception that came from another worker has its text in torch's form already; its repr would escape the lines.
    as_text = is_own or _came_from_afar(error)
    message: dict[str, Any] = {
        "m": _clean(_name(cls, "__module__"), _MAX_NAME),
        "q": _clean(_name(cls, "__qualname__"), _MAX_NAME),
        "x": _clean(_try(lambda: str(error) if as_text else repr(error).replace("\\n", "\n"), cls), MAX_TEXT),
        "t": _clean(_try(lambda: _traceback_of(error), cls), MAX_TRACEBACK),
        "i": worker_id,
        "n": _clean(worker_name, _MAX_NAME),
    }
    if is_own:
        message["f"] = _fields_of(error)
    return bytes(msgpack.packb(message))


def _name(cls: type, attribute: str) -> str:
    value = getattr(cls, attribute, None)
    return value if isinstance(value, str) else "?"


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _came_from_afar(error: BaseException) -> bool:
    try:
        return hasattr(error, "remote_worker")
    except BaseException:  # a __getattr__ of the user's
        return False


def _try(make: Callable[[], str], cls: type) -> str:
    try:
        return make()
    except BaseException as failure:  # a __str__ or __repr__ of the user's, which may raise anything
        return f"<{_name(cls, '__qualname__')}, whose text cannot be made: {type(failure).__name__}>"


def _text_of(error: Exception) -> str:
    return _try(lambda: str(error), type(error))


def _clean(text: str, limit: int) -> str:
    """A text that utf-8 can carry, of at most `limit` characters: its beginning and its end."""
    if len(text) > limit:
        half = (limit - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:]
    return text.encode("utf-8", "backslashreplace").decode()


def _fields_of(error: BaseException) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in list(vars(error).items())[:_MAX_FIELDS]:
        if name.startswith(("_", "remote_")):
            continue
        if isinstance(value, (tuple, list)):
            if len(value) <= _MAX_ITEMS and all(_is_plain(item) for item in value):
                fields[name] = [_plain(item) for item in value]
        elif _is_plain(value):
            fields[name] = _plain(value)
    return fields


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return value is None or isinstance(value, (str, float))


def _plain(value: Any) -> Any:
    return _clean(value, MAX_TEXT // 16) if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------ arriving


def decode_failure(body: Buffer) -> BaseException:
    """The exception to raise for a failure that came.

    It has the attributes `remote_traceback` and `remote_worker` (a name). Raises `FrameError` for bytes that are none.
    """
    message = _checked(body)
    module, qualified_name, text, trace, worker_id, worker = (message[key] for key in "mqxtin")
    cls = _find_type(module, qualified_name)
    where = f"On WorkerInfo(id={worker_id}, name={worker}):"
    error: BaseException
    if cls is not None and issubclass(cls, ZrpcError):
        # The frames of an own error say nothing that its sentence does not. One that was passed on says where from.
        error = _own(cls, text if text.startswith("On WorkerInfo(") else f"{where}\n{text}", message.get("f") or {})
    else:
        full = text if text.startswith("On WorkerInfo(") else f"{where}\n{text}\n{trace}"
        error = _same_type(cls, full) if cls is not None else RemoteFault(full)
    if isinstance(error, RemoteFault):
        error.type_name = error.type_name or f"{module}.{qualified_name}"
        error.worker = error.worker or worker
        error.traceback = error.traceback or trace
    try:
        error.remote_traceback = trace  # type: ignore[attr-defined]
        error.remote_worker = worker  # type: ignore[attr-defined]
    except AttributeError:  # a class that allows no attributes
        pass
    return error


def _checked(body: Buffer) -> dict[str, Any]:
    if len(body) > _MAX_BODY:
        raise FrameError(f"a failure of {len(body)} bytes is longer than any")
    try:
        message = msgpack.unpackb(body, strict_map_key=True)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"a failure that is not msgpack ({type(error).__name__})") from None
    if type(message) is not dict or any(type(message.get(key)) is not str for key in "mqxtn"):
        raise FrameError("a failure without the texts that make one")
    if type(message.get("i")) is not int or type(message.get("f", {})) is not dict:
        raise FrameError("a failure without a worker")
    return message


def _find_type(module: str, qualified_name: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _own(cls: type[ZrpcError], text: str, fields: dict[str, Any]) -> ZrpcError:
    """One of zrpc's errors as it was. Its __init__ makes the text from other things, so it is passed over."""
    base: Any = cls
    while base.__flags__ & _HEAP_TYPE:  # to the built-in class that decides what its instances look like
        base = base.__base__
    error: ZrpcError = base.__new__(cls)
    error.args = (text,)
    for name, value in fields.items():
        if name.isidentifier() and not name.startswith("_"):
            error.__dict__[name] = tuple(value) if isinstance(value, list) else value
    if isinstance(error, RemoteFault):
        for name in ("type_name", "worker", "traceback"):
            error.__dict__.setdefault(name, "")
    return error


def _same_type(cls: type[Exception], text: str) -> BaseException:
    try:
        error = cls(text)
        if type(error) is cls:
            return error
        why = f"{cls.__name__} made a {type(error).__name__}"
    except Exception as failure:
        why = _text_of(failure)
    return RemoteFault(
        f"Failed to create original exception type. Error msg was {why} Original exception on remote side was {text}"
    )
