"""The schema of a cluster's configuration file: every key, its default, and what it must be.

One rule: a model says what is allowed and how it is put in words (`Expect`), and does nothing. Times are seconds, sizes
bytes. Reading a file is `zrpc.config.loader`; making processes of it is `zrpc.launch.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from zrpc.errors import InvalidName
from zrpc.ids import check_name
from zrpc.options import CODECS, MAX_SPIN, AgentOptions


@dataclass(frozen=True)
class Expect:
    """What a value must be, in words that follow 'expected'."""

    words: str


def _valid_name(value: str) -> str:
    try:
        return check_name(value)
    except InvalidName as error:
        raise ValueError(error.why) from None


def _valid_entry(value: str) -> str:
    module, colon, function = value.partition(":")
    parts = [*module.split("."), *function.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError("no module:function")
    return value


def _valid_module(value: str) -> str:
    if not all(part.isidentifier() for part in value.split(".")):
        raise ValueError("no module")
    return value


def _valid_template(value: str) -> str:
    try:
        made = value.format(index=0, role="r")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ValueError("no template") from None
    _valid_name(made)
    return value


def _valid_bind(value: str) -> str:
    scheme, _, rest = value.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError("no address")
    return value


def _text_numbers(value: object) -> object:
    """Let `OMP_NUM_THREADS: 2` be the text '2': the environment has nothing but text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value


def _empty_map(value: object) -> object:
    """A role of which nothing is said has nothing but defaults."""
    return {} if value is None else value


def _short_restart(value: object) -> object:
    """`restart: on-failure` is short for `restart: {policy: on-failure}`."""
    return {"policy": value} if isinstance(value, str) else value


Text = Annotated[str, Field(strict=True)]
Name = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_valid_name),
    Expect("a name (letters, digits, '_', ':', '-', at most 127)"),
]
Template = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_valid_template),
    Expect("a name, in which {index} and {role} are filled in, such as 'shard-{index}'"),
]
Entry = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_valid_entry),
    Expect("an entry as 'module:function', such as 'examples.quickstart.job:main'"),
]
Module = Annotated[str, Field(strict=True), AfterValidator(_valid_module), Expect("a module, such as 'package.module'")]
Bind = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_valid_bind),
    Expect("an address as tcp://HOST:PORT (port 0 takes any free one)"),
]
Address = Annotated[
    str,
    Field(strict=True),
    AfterValidator(lambda value: _valid_bind(value) if value else value),
    Expect("an address as tcp://HOST:PORT, or nothing"),
]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000), Expect("an integer from 1 to 10000")]
Times = Annotated[int, Field(strict=True, ge=0), Expect("an integer of at least 0")]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), Expect("seconds, 0 or more")]
SomeSeconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), Expect("seconds, more than 0")]
Many = Annotated[int, Field(strict=True, ge=1), Expect("an integer, 1 or more")]
Bytes = Annotated[int, Field(strict=True, ge=1024), Expect("a number of bytes, at least 1024")]
Flag = Annotated[bool, Field(strict=True), Expect("on or off")]
EnvironmentText = Annotated[
    str, BeforeValidator(_text_numbers), Expect("text (numbers are fine, true and false need quotes)")
]
Arguments = Annotated[dict[str, Any], Expect("a map of argument names to values")]
Environment = Annotated[dict[str, EnvironmentText], Expect("a map of variable names to text")]


class Model(BaseModel):
    """What all parts share: unknown keys are errors, and a value that was read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, populate_by_name=True)


class Options(Model):
    """Options of the agents (see `zrpc.options.AgentOptions`); what is left out keeps its default."""

    rpc_timeout: Seconds | None = None
    num_worker_threads: (
        Annotated[int, Field(strict=True, ge=1, le=4096), Expect("an integer from 1 to 4096")] | None
    ) = None
    init_timeout: Seconds | None = None
    bind: Bind | None = None
    advertise: Address | None = None
    codecs: (
        Annotated[
            list[Annotated[Literal["script", "python", "builtin"], Expect(f"one of {', '.join(CODECS)}")]],
            Expect(f"a list of some of {', '.join(CODECS)}"),
        ]
        | None
    ) = None
    allow: (
        Annotated[
            list[Annotated[str, Field(strict=True, min_length=1), Expect("the name of a function, or a pattern")]],
            Expect("a list of names of functions, or patterns"),
        ]
        | None
    ) = None
    accept_code: Flag | None = None
    code_cache_bytes: Annotated[int, Field(strict=True, ge=0), Expect("a number of bytes, 0 or more")] | None = None
    max_message_bytes: Bytes | None = None
    max_pending_bytes: Bytes | None = None
    when_full: Annotated[Literal["block", "fail"], Expect("block or fail")] | None = None
    lanes: Flag | None = None
    spin: Annotated[float, Field(strict=True, ge=0, le=MAX_SPIN), Expect("seconds, 0 to 0.001")] | None = None
    shared_memory_bytes: Annotated[int, Field(strict=True, ge=0), Expect("a number of bytes, 0 or more")] | None = None
    drain_timeout: Seconds | None = None
    reference_stacks: Flag | None = None
    max_message_tensors: Many | None = None
    max_code_bytes: Annotated[int, Field(strict=True, ge=0), Expect("a number of bytes, 0 or more")] | None = None
    max_nesting: Annotated[int, Field(strict=True, ge=1, le=1000), Expect("an integer from 1 to 1000")] | None = None
    max_pending_calls: Many | None = None

    def given(self) -> dict[str, Any]:
        """Only what was written, as fields of `AgentOptions`."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Restart(Model):
    """When a process that ended is started again, and after how long."""

    policy: Annotated[Literal["never", "on-failure", "always"], Expect("never, on-failure or always")] = "never"
    backoff: Seconds = 0.5
    """Wait before the first restart; it doubles with each further one."""
    max_backoff: Seconds = 30.0
    max_restarts: Times = 5
    """Failures in a row after which the cluster is given up; one that stayed up for long starts from 0 again."""


class Program(Model):
    """What a role and the job share."""

    args: Arguments = {}
    env: Environment = {}
    threads: Count | None = None
    """OMP_NUM_THREADS of the process; torch takes every core when nothing is said."""
    stop_timeout: Seconds = 5.0
    """From the request to stop until the process is killed."""
    options: Annotated[Options, Expect("a map of options")] = Options()
    restart: Annotated[Restart, BeforeValidator(_short_restart), Expect("never, on-failure, always or a map")] = (
        Restart()
    )


class Role(Program):
    """Some workers that do the same."""

    count: Count = 1
    name: Template | None = None
    """Names of the workers; default '{role}-{index}', or just the role's name when there is one."""
    entry: Entry | None = None
    """A function called with `args` once the worker has joined; afterwards it serves."""
    imports: Annotated[list[Module], Field(alias="import"), Expect("a list of modules")] = []
    """Modules imported before the worker joins, for the functions in them."""
    script: Text | None = None
    """A saved TorchScript file whose methods are served, by a path that starts at the configuration file."""
    start_timeout: SomeSeconds = 120.0

    def worker_names(self, role: str) -> list[str]:
        """The names of this role's workers, in order."""
        return [self.worker_name(role, index) for index in range(self.count)]

    def worker_name(self, role: str, index: int) -> str:
        """The name of worker number `index`, which may be one more than the file has."""
        template = self.name or ("{role}" if self.count == 1 and index == 0 else "{role}-{index}")
        return template.format(index=index, role=role)


class Job(Program):
    """The program that uses the cluster. The cluster ends with it."""

    entry: Entry
    name: Name = "job"
    timeout: Seconds = 0.0
    """The job is stopped, and has failed, after this long; 0 for no limit."""


class Broker(Model):
    """The cluster's broker."""

    bind: Bind = "tcp://127.0.0.1:0"
    standby: Flag = False
    """Whether a second broker runs, which takes over when the first one is lost."""
    standby_bind: Bind = "tcp://127.0.0.1:0"
    """Where the second broker listens."""
    heartbeat_interval: SomeSeconds = 0.5
    """How often each member reports to the broker."""
    death_timeout: SomeSeconds = 3.0
    """A member that is stopped or cut off counts as dead before this long has passed."""
    silence_timeout: SomeSeconds = 30.0
    """A member whose connection stands but that reports nothing is dead after this long: one call of a C library can keep
    Python from reporting for seconds."""
    names_per_host: Count = 10_000
    """Workers of one host that the broker lets in, at a time."""


class ClusterConfig(Model):
    """A whole configuration file."""

    cluster: Name = "zrpc"
    """Names the cluster, in keys and tables."""
    broker: Annotated[Broker, Expect("a map that describes the broker")] = Broker()
    roles: Annotated[
        dict[
            Annotated[str, AfterValidator(_valid_name)],
            Annotated[Role, BeforeValidator(_empty_map), Expect("a map that describes a role")],
        ],
        Expect("a map of role names to roles"),
    ] = {}
    job: Annotated[Job, Expect("a map that describes the job")] | None = None
    options: Annotated[Options, Expect("a map of options")] = Options()
    security: Flag = True
    """CURVE on every connection. Off lets anybody who reaches a port run code here."""
    run_dir: Text | None = None
    """Where keys and logs go; by default a new directory of the user, removed at the end unless something failed."""
    python_path: Annotated[list[Text], Expect("a list of directories")] = ["."]
    """Directories, from the configuration file's own, that workers find modules in."""

    def agent_options(self, program: Program) -> dict[str, Any]:
        """The fields of `AgentOptions` that a role or the job runs with; its own win over the cluster's."""
        return {**self.options.given(), **program.options.given(), "security": self.security}


OPTION_NAMES = frozenset(AgentOptions.__dataclass_fields__) - {"security"}
"""Fields of `AgentOptions` that a configuration may set; security is said once, for the whole cluster."""


@dataclass(frozen=True)
class Loaded:
    """A configuration that was read and found good, and where it was."""

    config: ClusterConfig
    path: Path

    def resolve(self, relative: str) -> Path:
        """A path that the file wrote, from the file's directory."""
        return (self.path.parent / Path(relative).expanduser()).resolve()

    def python_path(self) -> list[str]:
        """Directories for the workers' module search, absolute."""
        return [str(self.resolve(entry)) for entry in self.config.python_path]
