"""Where in a value the thing is that could not be pickled.

One rule: called only after a failure. It tries the parts of the value one by one, and goes down into the first that
fails by itself; so it may be slow, and the way that succeeds pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from zrpc.errors import EncodeError

MAX_DEPTH: Final = 64
MAX_PARTS: Final = 100_000
"""Parts tried in all. A value with more is reported at the depth that was reached."""


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container or object, each with the text that leads to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f" key {key!r:.60}", key
            yield f"[{key!r:.60}]", item
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, item in zip(value._fields, value, strict=False):
            yield f".{name}", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "{...}", item
    elif not isinstance(value, type):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            for name, item in attributes.items():
                yield f".{name}", item
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    yield f".{name}", getattr(value, name)
        yield from _captured(value)


def _captured(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function closes over, and the object of a bound method."""
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None)
    if code is not None and cells:
        for name, cell in zip(code.co_freevars, cells, strict=False):
            try:
                yield f"<closure {name}>", cell.cell_contents
            except ValueError:  # an empty cell
                continue
    bound = getattr(function, "__self__", None)
    if bound is not None and not isinstance(bound, type) and hasattr(function, "__func__"):
        yield ".__self__", bound


def explain(
    value: Any, error: BaseException, encode: Callable[[Any], object], root: str | tuple[str, ...] = "value"
) -> EncodeError:
    """The `EncodeError` for a value that `encode` failed on with `error`.

    `root` is how the user knows the value: a name, or one name for each part of a tuple.
    """
    path = root if isinstance(root, str) else ""
    budget = MAX_PARTS
    cause = error
    seen = {id(value)}
    for depth in range(MAX_DEPTH):
        if depth == 0 and not isinstance(root, str):
            named = list(zip(root, value, strict=False))
        else:
            named = [(path + step, part) for step, part in _bounded(value, budget)]
        budget -= len(named)
        for name, part in named:
            if id(part) in seen:
                continue
            failure = _failure_of(part, encode)
            if failure is not None:
                path, value, cause = name, part, failure
                seen.add(id(part))
                break
        else:
            break
    why = cause.why if isinstance(cause, EncodeError) else _sentence(cause)
    return EncodeError(path or "the value", _type_name(value), why)


def _bounded(value: Any, budget: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    try:
        for part in parts_of(value):
            if len(found) >= budget:
                break
            found.append(part)
    except Exception:  # a property, slot or __repr__ of the user's that raises: what was found must do
        pass
    return found


def _failure_of(part: Any, encode: Callable[[Any], object]) -> Exception | None:
    try:
        encode(part)
    except Exception as error:
        return error
    return None


def _sentence(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "no message"
    return f"{text[:500]} ({type(error).__name__})"


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
