"""Write the tables of docs/operations.md from the code: configuration keys, exit codes, errors.

    python docs/tools/draw_reference.py

One rule: what lies between a section's two markers is written here, and nowhere else; a test compares. A key's meaning
is the text below it in the code where there is one, else the one here; a key or an error without any is a failure.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from zrpc import errors, options
from zrpc.config import schema
from zrpc.config.problems import expectation
from zrpc.launch.exits import MEANINGS
from zrpc.options import AgentOptions

PAGE = Path(__file__).resolve().parent.parent / "operations.md"

KEYS: Mapping[str, str] = {
    "Broker.bind": "Where the launcher's broker listens.",
    "ClusterConfig.broker": "The cluster's broker.",
    "ClusterConfig.job": "The program that uses the cluster; the cluster ends with it. Without one it runs until stopped.",
    "ClusterConfig.options": "Options of all agents.",
    "ClusterConfig.roles": "The workers, by role. NAME is of your choice.",
    "Job.entry": "The function that is the job. It may return an exit code.",
    "Job.name": "The job's name in the cluster.",
    "Program.args": "Keyword arguments of the entry.",
    "Program.env": "Further environment variables.",
    "Program.options": "Options that differ from the cluster's.",
    "Restart.max_backoff": "The longest wait.",
    "Restart.policy": "`on-failure`: after a crash or an exit code other than 0; `always`: of workers also after an "
    "orderly end. `restart: on-failure` is short for a map with this key.",
    "Role.count": "How many workers.",
    "Program.restart": "When the process is started again after its end.",
    "Role.start_timeout": "From the start of a process until it must have joined.",
}
"""Meanings that the code does not say where the key is, or says otherwise for other readers."""

REMEDIES: Mapping[str, str] = {
    "NotInitialized": "call `init_rpc` first, in this process",
    "AlreadyInitialized": "call `shutdown` first; one agent runs in a process",
    "InvalidDestination": "name the worker: a `str`, its id or its `WorkerInfo`",
    "InvalidName": "use letters, digits, `_`, `:`, `-`; 1 to 127 of them",
    "ConfigError": "mend what the message names; it has file, line and what was expected",
    "KeyFileError": "`chmod 600` the file, own it, or name the right one",
    "ArgumentMismatch": "call with what the schema in the message says; nothing was sent",
    "EncodeError": "send another value; the message has the path to the part that cannot go",
    "LimitExceeded": "send less at once, or raise the limit on both sides",
    "Overloaded": "wait for replies first, raise `max_pending_bytes`, or have calls wait (`when_full: block`)",
    "RRefMisuse": "use `to_here()` on a user, `local_value()` at the owner, and pass references in calls only",
    "AutogradMisuse": "the message says what a context or the roots of a pass must be",
    "BrokerUnreachable": "is the broker running, is the address right, is it the same key file?",
    "UnknownWorker": "the message lists who is known; did it join, did it die?",
    "WorkerLost": "what was under way there may or may not have run; calls to the name work again once it is back",
    "WorkerDraining": "nothing was started: call another worker, or the name again once it is back",
    "RRefLost": "the value died with its owner: make it again",
    "NameTaken": "use another name, or stop the holder, which the message names",
    "JoinRefused": "the message says why: rank, group size, or a full cluster",
    "TooManyNames": "stop some workers of that host, or raise the broker's `names_per_host`",
    "CodecRefused": "call a kind of function that the worker takes, or change its `codecs`",
    "CodeRefused": "start the worker with the function, from the same source and torch",
    "CallNotAllowed": "call another function, or put its name on the worker's list `allow`",
    "TooManyCalls": "wait for some of the calls that are under way, or raise `max_pending_calls` of the worker",
    "UnknownFunction": "import or register it on the worker; mind the spelling",
    "NotImportable": "install the module on the worker that reads the message, or put its directory on `python_path`",
    "StaleIncarnation": "the worker has restarted: call again, by its name",
    "CallTimeout": "the function may still run there; raise the timeout, or look why it is slow",
    "GroupTimeout": "start those that it names, or raise `init_timeout`",
    "Cancelled": "whoever made the call did not want it any more; nothing is wrong",
    "BackwardFault": "mend the operation that it names on that worker; compute anew in a new context",
    "RemoteFault": "read the remote traceback in it; the exception's type is not imported here",
    "FrameError": "the peer is no zrpc, or is damaged; what was refused is counted",
    "VersionMismatch": "install the same torch-zrpc on both sides",
    "DecodeRefused": "the message asks for more than its codec allows: is the sender one of yours?",
    "InvalidTransition": "a fault of zrpc, or a peer that breaks the protocol: report it",
}
"""What to do about each error that is raised."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def said_below_fields(module: ModuleType) -> dict[str, str]:
    """'Class.field' -> the text below the field in the class's body."""
    said = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    said[f"{node.name}.{ast.unparse(field.target)}"] = " ".join(ast.literal_eval(text.value).split())
    return said


class Keys:
    """Goes through the schema from its root and collects a row for each key."""

    def __init__(self) -> None:
        self._said = {**said_below_fields(schema), **said_below_fields(options), **KEYS}
        self.rows: list[tuple[str, str, str, str]] = []
        self.option_rows: list[tuple[str, str, str, str]] = []

    def walk(self, model: type[BaseModel], prefix: str = "") -> None:
        """Add the keys of a model, and of the models in it."""
        for name, field in model.model_fields.items():
            key = prefix + (field.alias or name)
            inner = model_in(field.annotation)
            words = expectation(model, (field.alias or name,))
            default = "" if inner is not None else show_default(field)
            self.rows.append((f"`{key}`", words, default, self._meaning(model, name)))
            if inner is schema.Options:
                continue
            if inner is not None:
                self.walk(inner, f"{key}.NAME." if inner is schema.Role else f"{key}.")

    def walk_options(self) -> None:
        """The keys of `options`; their defaults and most of their meanings are those of `AgentOptions`."""
        defaults = AgentOptions()
        for name in schema.Options.model_fields:
            value = getattr(defaults, name)
            shown = ", ".join(value) if isinstance(value, tuple) else show(value)
            words = expectation(schema.Options, (name,))
            meaning = KEYS.get(f"Options.{name}") or self._said[f"AgentOptions.{name}"]
            self.option_rows.append((f"`{name}`", words, shown, meaning))

    def _meaning(self, model: type[BaseModel], name: str) -> str:
        for cls in model.__mro__:
            meaning = self._said.get(f"{cls.__name__}.{name}")
            if meaning is not None:
                return meaning
        raise KeyError(f"say what {model.__name__}.{name} means: below the field, or in KEYS")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone, optional or in a map."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in reversed(getattr(annotation, "__args__", ())):
        found = model_in(part)
        if found is not None:
            return found
    return None


def show_default(field: FieldInfo) -> str:
    """A default as it would be written."""
    return "required" if field.is_required() else show(field.default)


def show(value: Any) -> str:
    """A value as it would be written."""
    if value is None or value == "" or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value} ({value >> 20} MiB)"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)


def draw_keys() -> str:
    """Keys of a configuration file, but for options."""
    keys = Keys()
    keys.walk(schema.ClusterConfig)
    return table(("key", "expected", "default", "meaning"), keys.rows)


def draw_options() -> str:
    """Keys below `options`."""
    keys = Keys()
    keys.walk_options()
    return table(("key", "expected", "default", "meaning"), keys.option_rows)


def draw_exits() -> str:
    """Exit codes of the command."""
    return table(("code", "meaning"), sorted(MEANINGS.items()))


def draw_errors() -> str:
    """All errors, those under a root after it, with what to do."""
    rows: list[tuple[str, str, str]] = []

    def add(cls: type[errors.ZrpcError], depth: int) -> None:
        remedy = REMEDIES.get(cls.__name__, "")
        if not remedy and not cls.__subclasses__():
            raise KeyError(f"say in REMEDIES what to do about {cls.__name__}")
        first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
        name = f"{'&nbsp;&nbsp;' * depth}`{cls.__name__}`"
        rows.append((name, first, remedy))
        for part in vars(errors).values():
            if isinstance(part, type) and cls in part.__bases__:
                add(part, depth + 1)

    add(errors.ZrpcError, 0)
    return table(("error", "meaning", "what to do"), rows)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "keys": draw_keys,
    "options": draw_options,
    "exits": draw_exits,
    "errors": draw_errors,
}


def redraw(text: str) -> str:
    """A page with all its sections drawn anew."""
    for name, draw in SECTIONS.items():
        begin, end = f"<!-- drawn: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no section {name!r} between {begin!r} and {end!r}")
        text = f"{before}{begin}\n{draw()}\n\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(redraw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
