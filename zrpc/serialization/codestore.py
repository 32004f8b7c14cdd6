"""The functions that a worker has: its own, torch's operators, and those that callers brought.

One rule: what a caller brings is found by the hash of its content and by nothing else, so it can never be mistaken for
another function of its name, and a call by name alone never reaches it. What was brought is kept up to a number of
bytes; the least recently used goes first, and comes again with the next call that needs it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import torch
from torch.jit._builtins import _find_builtin

from zrpc.errors import CodeRefused, FrameError, LimitExceeded, LocalFault, UnknownFunction
from zrpc.serialization.archives import canonical, load_archive, method_hash
from zrpc.serialization.script import describe, find_scripted
from zrpc.serialization.values import archive_bytes
from zrpc.wire.limits import DEFAULT_LIMITS, MIB

Function = Callable[..., Any]

DEFAULT_CACHE_BYTES: Final = 256 * MIB

_REFUSED_OPERATORS: Final = frozenset(("aten::from_file", "aten::save"))
"""Operators that open files of the caller's choice."""
_REFUSED_NAMESPACES: Final = ("prim::", "profiler::")
"""Operators of the interpreter itself."""


@lru_cache(maxsize=1024)
def find_operator(name: str) -> Function | None:
    """torch's operator of that name: 'namespace::operator', or the name of its Python function ('torch.add')."""
    if "::" not in name:
        builtin = _builtin_of(name)
        if builtin is None:
            return None
        name = builtin
    if name in _REFUSED_OPERATORS or name.startswith(_REFUSED_NAMESPACES):
        return None
    try:
        operation, _ = torch._C._jit_get_operation(name)
    except RuntimeError:
        return None
    found: Function | None = operation
    return found


def _builtin_of(name: str) -> str | None:
    """The operator behind a name like 'torch.add' or 'torch.nn.functional.relu'; nothing else of torch is found."""
    first, *parts = name.split(".")
    if first != "torch" or not parts:
        return None
    found: Any = torch
    for part in parts:
        found = getattr(found, "__dict__", {}).get(part)
    if found is None or isinstance(found, type(torch)):
        return None
    builtin: str | None = _find_builtin(found)  # type: ignore[no-untyped-call]
    return builtin


class CodeStore:
    """What can be called on this worker as TorchScript, by name or by content. Safe to use from any thread.

    `accept=False` makes it refuse functions that are not on this worker already. `max_bytes` bounds the archives of
    those that callers bring, all together; `code_bytes` the size of one.
    """

    def __init__(
        self,
        accept: bool = True,
        max_bytes: int = DEFAULT_CACHE_BYTES,
        code_bytes: int = DEFAULT_LIMITS.code_bytes,
    ) -> None:
        self._accept = accept
        self._max_bytes = max_bytes
        self._code_bytes = code_bytes
        self._lock = threading.Lock()
        self._by_name: dict[str, Function] = {}
        self._own: dict[bytes, Function] = {}
        self._brought: OrderedDict[bytes, tuple[Function, int]] = OrderedDict()
        self._brought_bytes = 0

    def __repr__(self) -> str:
        return f"<CodeStore own={len(self._by_name)} brought={len(self._brought)} ({self._brought_bytes} bytes)>"

    def names(self) -> list[str]:
        """The names that were added here, sorted."""
        with self._lock:
            return sorted(self._by_name)

    # ------------------------------------------------------------------------------------------- own

    def add_local(self, func: Any, name: str | None = None) -> list[str]:
        """Make a TorchScript function callable by name, or the methods of a ScriptModule as `name.method`.

        `name` defaults to the function's qualified name, or to the module's class. A module is called as it is here,
        with the state that it has. Returns the names. Raises `LocalFault` for anything else.
        """
        added: dict[str, Function] = {}
        hashes: dict[bytes, Function] = {}
        if isinstance(func, torch.jit.ScriptFunction):
            script = describe(func)
            added[name or script.name] = func
            hashes[script.hash] = func
        elif isinstance(func, torch.jit.ScriptModule):
            stem = name or func.original_name
            for method_name in func._c._method_names():
                method = func._c._get_method(method_name)
                added[f"{stem}.{method_name}"] = method
                hash = describe(method).hash
                hashes[hash] = _MethodByValue(method_name, hash)
        else:
            raise LocalFault(
                f"a TorchScript function or a ScriptModule can be called by name, not {type(func).__name__}"
            )
        with self._lock:
            self._by_name.update(added)
            self._own.update(hashes)
        return sorted(added)

    # --------------------------------------------------------------------------------------- looking up

    def resolve(self, name: str, hash: bytes | None) -> Function | None:
        """The function to call for a call's name and hash; None when it is not here.

        With a hash, the function has exactly that content and takes all its arguments by position. Without, only this
        worker's own functions and torch's operators are found ("aten::add", "torch.add").
        """
        if hash is None:
            return self._by_name.get(name) or find_scripted(name) or find_operator(name)
        return self._resolve_content(name, hash)

    def is_own(self, name: str) -> bool:
        """Whether the name is that of a TorchScript function of this worker, not of torch's."""
        return name in self._by_name or find_scripted(name) is not None

    def _resolve_content(self, name: str, hash: bytes) -> Function | None:
        found = self._own.get(hash)
        if found is not None:
            return found
        with self._lock:
            brought = self._brought.get(hash)
            if brought is not None:
                self._brought.move_to_end(hash)
                return brought[0]
        own = find_scripted(name)
        if own is not None and describe(own).hash == hash:
            with self._lock:
                self._own[hash] = own
            found_own: Function = own
            return found_own
        return None

    def check_accepts(self, name: str) -> None:
        """Raise `CodeRefused` when this worker takes no code from callers."""
        if not self._accept:
            raise CodeRefused(
                f"this worker does not take code from its callers, and has no function {name!r} of the content that "
                "the call names. Start it with the function (register_script), from the same source and torch."
            )

    # ------------------------------------------------------------------------------------------ brought

    def load(self, name: str, hash: bytes, archive: bytes) -> Function:
        """Take a function that a caller brought, and give it back ready to be called with positional arguments.

        Raises `CodeRefused`, `LimitExceeded`, or `FrameError` when the archive is not what the hash names.
        """
        self.check_accepts(name)
        if len(archive) > self._code_bytes:
            raise LimitExceeded("the code of a TorchScript function", len(archive), self._code_bytes)
        content, packed = canonical(archive, self._code_bytes)
        method = name.rpartition(".")[2]
        if hash not in (content, method_hash(method, content)):
            raise FrameError(f"the code that came for {name} is not what its hash names")
        try:
            module = load_archive(packed)
        except Exception as error:
            raise FrameError(f"the code that came for {name} cannot be loaded: {str(error)[:500]}") from error
        is_function = hash == content
        wanted = "forward" if is_function else method
        if not module._has_method(wanted):
            raise UnknownFunction(f"the code that came for {name} has no method {wanted!r}")
        func: Function = module._get_method("forward") if is_function else _MethodByValue(method, hash)
        self._keep(hash, func, len(packed))
        return func

    def _keep(self, hash: bytes, func: Function, size: int) -> None:
        with self._lock:
            old = self._brought.pop(hash, None)
            if old is not None:
                self._brought_bytes -= old[1]
            self._brought[hash] = (func, size)
            self._brought_bytes += size
            while self._brought_bytes > self._max_bytes and len(self._brought) > 1:
                _, (_, gone) = self._brought.popitem(last=False)
                self._brought_bytes -= gone


class _MethodByValue:
    """A method whose module comes with each call. Its code must be the one that the call's hash named."""

    __slots__ = ("_hash", "_method")

    def __init__(self, method: str, hash: bytes) -> None:
        self._method = method
        self._hash = hash

    def __call__(self, archive: Any, *args: Any) -> Any:
        saved = archive_bytes(archive)
        content, packed = canonical(saved, DEFAULT_LIMITS.message_bytes)
        if method_hash(self._method, content) != self._hash:
            raise CodeRefused(
                f"the module that came with a call of its method {self._method!r} has other code than it says"
            )
        module = load_archive(packed)
        return module._get_method(self._method)(*args)
