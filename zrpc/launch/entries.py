"""What a worker's process does with what the launcher told it: find functions, wait at the gate.

One rule: this runs in workers, so it imports nothing that only the launcher needs.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, NoReturn

from zrpc.errors import (
    BrokerUnreachable,
    ConfigError,
    DeadlineExceeded,
    GroupTimeout,
    JoinRefused,
    KeyFileError,
    NameTaken,
    VersionMismatch,
)

GATE_VARIABLE = "ZRPC_GATE"
"""Names the descriptor that a job waits at until the launcher lets it go."""

SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread that runs Python lets another one do so, if one wants to; Python's default is ten times
that. A short call beside a function that loops in Python took 0.24 ms (p50; 6 ms with the default), beside two 4 ms
(20 ms). The loops themselves were not measurably slower."""
RESTART_VARIABLE = "ZRPC_RESTART"
"""How often this process's name was started before, by the same launcher."""

SELF_EXPLAINING = (ConfigError, KeyFileError, BrokerUnreachable, NameTaken, JoinRefused, VersionMismatch, GroupTimeout)
"""Errors of joining a cluster, whose sentence says all; where in the code they were raised helps nobody."""


def load_entry(entry: str) -> Callable[..., Any]:
    """The function that `module:function` names. Raises `ConfigError`; what the module raises goes through."""
    module_name, _, qualified = entry.partition(":")
    value: Any = _import(module_name, f"entry {entry}")
    for part in qualified.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise ConfigError(f"entry {entry}", [f"module {module_name} has no {qualified!r}"]) from None
    if not callable(value):
        raise ConfigError(f"entry {entry}", [f"expected a function, found {type(value).__name__}"])
    function: Callable[..., Any] = value
    return function


def load_modules(names: Iterable[str]) -> None:
    """Import modules for what they define. Raises `ConfigError` for one that is not there."""
    for name in names:
        _import(name, f"import {name}")


def _import(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, and imports one that is not
        remedy = "add its directory to python_path in the configuration, or to PYTHONPATH"
        raise ConfigError(what, [f"there is no module {error.name!r}: {remedy}"]) from None


def parse_arguments(text: str) -> dict[str, Any]:
    """Keyword arguments from the JSON that the launcher wrote. Raises `ConfigError`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError("arguments", [f"expected a JSON object: {error}"]) from None
    if not isinstance(value, dict):
        raise ConfigError("arguments", [f"expected a JSON object, found {text[:60]!r}"])
    return value


def wait_at_gate(environ: MutableMapping[str, str], timeout: float) -> None:
    """Wait until the launcher lets this process go on; at once when no launcher said so.

    Raises `DeadlineExceeded` after `timeout` seconds.
    """
    descriptor = environ.pop(GATE_VARIABLE, "")
    if not descriptor:
        return
    gate = int(descriptor)
    try:
        ready, _, _ = select.select([gate], [], [], timeout)
        if not ready:
            raise DeadlineExceeded(f"the launcher did not let this process begin within {timeout:g} s")
        os.read(gate, 16)
    finally:
        os.close(gate)


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run a worker's `main` and exit: with its result, or with 1 and one sentence when it cannot join.

    Other errors keep their traceback, and with ZRPC_DEBUG=1 all do.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    if os.environ.get("ZRPC_DEBUG") == "1":
        sys.exit(main() or 0)
    try:
        code = main()
    except SELF_EXPLAINING as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    except Exception:
        traceback.print_exc()  # from here down: the frames of the guard above are nobody's business
        code = 1
    sys.exit(code or 0)
