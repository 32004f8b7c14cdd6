"""Things defined in `__main__`: which script that is, and how they travel.

One rule: a name in `__main__` means something only in a process that runs the same script. A job script and a worker
have different ones, so what is defined there goes by value. It goes with its name and the digest of its script: a
receiver that runs the same script (workers started by `multiprocessing` from it, say) takes its own object of that
name instead, so that module state is shared there and classes are the same classes.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import cloudpickle
from cloudpickle.cloudpickle import _dynamic_class_reduce

from zrpc.serialization import names

MAIN_NAMES: Final = ("__main__", "__mp_main__")
"""`multiprocessing` imports the parent's script under the second name."""
MARK: Final = b"_main__"
"""In every pickle that names one of them."""


@lru_cache(maxsize=8)
def _digest_of(path: str) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def main_digest() -> str | None:
    """The digest of the script that this process runs as `__main__`; None for an interactive one."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return _digest_of(path) if isinstance(path, str) else None


def find_in_main(qualified_name: str) -> Any:
    """What `__main__` has of that name here, None if it has nothing."""
    found: Any = sys.modules.get("__main__")
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found


def _own_object(qualified_name: str, digest: str | None) -> Any:
    return find_in_main(qualified_name) if digest is not None and digest == main_digest() else None


def main_object(qualified_name: str, digest: str | None, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What arrives: this process's own object if it runs the same script, else a new one, still without its state."""
    own = _own_object(qualified_name, digest)
    return make(*arguments) if own is None else own


def main_state(thing: Any, state: tuple[Any, ...]) -> None:
    """Give a new object its state; an own one has its."""
    qualified_name, digest, set_state, inner = state
    if _own_object(qualified_name, digest) is not thing:
        set_state(thing, inner)


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
    """cloudpickle's pickler, which also takes lambdas, closures and local classes, with the rule of this module."""

    def __init__(self, file: Any, table: Any, buffer_callback: Any) -> None:
        # cloudpickle's class has a table of its own, and the C pickler looks for one only while it is made.
        self.dispatch_table = table
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        """cloudpickle's hook for functions and classes."""
        if (
            isinstance(obj, (type, types.FunctionType))
            and obj.__module__ in MAIN_NAMES
            and find_in_main(obj.__qualname__) is obj
        ):
            # cloudpickle makes a thing in two steps, empty and then its state, so that it may refer to itself; the name
            # belongs to the first step, for the reference to lead to the receiver's own.
            reduced = _dynamic_class_reduce(obj) if isinstance(obj, type) else self._dynamic_function_reduce(obj)
            make, arguments, inner, _, _, set_state = reduced
            digest = main_digest()
            state = (obj.__qualname__, digest, set_state, inner)
            return names.main_object, (obj.__qualname__, digest, make, arguments), state, None, None, names.main_state
        return super().reducer_override(obj)
