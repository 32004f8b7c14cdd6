from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from zrpc.config.loader import dump_config, load_config, parse_config
from zrpc.config.schema import OPTION_NAMES, Options
from zrpc.errors import ConfigError
from zrpc.options import AgentOptions

GOOD = """\
cluster: demo
roles:
  shard:
    count: 3
    entry: package.module:main
    args: {size: 4, names: [a, b]}
    env: {LEVEL: 2}
    restart: on-failure
  parameters:
    import: [package.functions]
job:
  entry: package.job:main
options: {rpc_timeout: 5}
"""


def problems_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.yaml", overrides)
    return list(caught.value.problems)


def test_good_configuration() -> None:
    config = parse_config(GOOD, "c.yaml")
    assert config.roles["shard"].worker_names("shard") == ["shard-0", "shard-1", "shard-2"]
    assert config.roles["parameters"].worker_names("parameters") == ["parameters"]
    assert config.roles["shard"].restart.policy == "on-failure"
    assert config.roles["shard"].env == {"LEVEL": "2"}
    assert config.job is not None
    assert config.job.name == "job"
    assert config.agent_options(config.job) == {"rpc_timeout": 5.0, "security": True}


def test_role_options_win_over_the_clusters() -> None:
    text = "options: {rpc_timeout: 5, num_worker_threads: 2}\nroles: {a: {options: {rpc_timeout: 9}}}\nsecurity: off"
    config = parse_config(text, "c.yaml")
    assert config.agent_options(config.roles["a"]) == {"rpc_timeout": 9.0, "num_worker_threads": 2, "security": False}


def test_options_are_those_of_the_agent() -> None:
    assert set(Options.model_fields) == OPTION_NAMES
    given = Options(codecs=["script"], bind="tcp://127.0.0.1:0", rpc_timeout=1.0).given()
    assert dataclasses.asdict(AgentOptions().replace(**given))["codecs"] == ("script",)


BAD = [
    ("roles: {s: {\n count: two}}", ["c.yaml:2: roles.s.count: expected an integer from 1 to 10000, found 'two'"]),
    ("roles:\n  s:\n    count: 0", ["c.yaml:3: roles.s.count: expected an integer from 1 to 10000, found 0"]),
    ("roles:\n  s:\n    count: true", ["c.yaml:3: roles.s.count: expected an integer from 1 to 10000, found true"]),
    ("roles:\n  s:\n    cuont: 3", ["c.yaml:3: roles.s.cuont: there is no such key; did you mean 'count'?"]),
    ("rolse:\n  s: {}", ["c.yaml:1: rolse: there is no such key; did you mean 'roles'?"]),
    ("roles: {s: {}}\nxyzzy: 1", ["c.yaml:2: xyzzy: there is no such key; the keys here are cluster, broker, roles"]),
    ("roles: {s: {}}\nroles: {t: {}}", ["c.yaml:2: roles: the key is there already, at c.yaml:1"]),
    ("roles:\n  s: 3", ["c.yaml:2: roles.s: expected a map that describes a role, found 3"]),
    ("roles: [a]", ["c.yaml:1: roles: expected a map of role names to roles, found a list of 1"]),
    ("roles:\n  a b: {}", ["c.yaml:2: roles.a b: expected a name as key: Worker name must match"]),
    ("job: {name: x}", ["c.yaml:1: job.entry: is missing; expected an entry as 'module:function'"]),
    ("job: {entry: main}", ["c.yaml:1: job.entry: expected an entry as 'module:function'"]),
    (
        "roles: {s: {restart: often}}",
        ["c.yaml:1: roles.s.restart: expected never, on-failure, always or a map, found 'often'"],
    ),
    (
        "roles: {s: {restart: {policy: often}}}",
        ["c.yaml:1: roles.s.restart.policy: expected never, on-failure or always, found 'often'"],
    ),
    ("roles: {s: {options: {codecs: [jit]}}}", ["c.yaml:1: roles.s.options.codecs[0]: expected one of script, python"]),
    ("roles: {s: {stop_timeout: -1}}", ["c.yaml:1: roles.s.stop_timeout: expected seconds, 0 or more, found -1"]),
    ("roles: {s: {env: {A: true}}}", ["c.yaml:1: roles.s.env.A: expected text (numbers are fine"]),
    ("roles: {s: {}}\nbroker: {bind: here}", ["c.yaml:2: broker.bind: expected an address as tcp://HOST:PORT"]),
    ("roles: {s: {}}\nsecurity: maybe", ["c.yaml:2: security: expected on or off, found 'maybe'"]),
    (
        "roles: {s: {count: 2,\n name: same}}",
        ["c.yaml:2: roles.s.name: two workers would be named 'same': put {index}"],
    ),
    ("roles: {s: {name: 'x{size}'}}", ["c.yaml:1: roles.s.name: expected a name, in which {index} and {role}"]),
    ("roles: {job: {}}\njob: {entry: 'a:b'}", ["c.yaml:2: job.name: two workers would be named 'job': role 'job'"]),
    ("roles: {s: {script: a.pt, entry: 'a:b'}}", ["c.yaml:1: roles.s.script: expected no entry and no import"]),
    ("roles: {s: {args: {a-b: 1}}}", ["c.yaml:1: roles.s.args.a-b: expected an argument's name, found 'a-b'"]),
    ("roles: {s: {args: {a: 2024-01-01}}}", ["c.yaml:1: roles.s.args.a: expected text, numbers, lists and maps only"]),
    ("cluster: x", ["c.yaml:1: expected at least one role or a job, found neither"]),
    ("", ["c.yaml: it is empty; expected roles or a job"]),
    ("3", ["c.yaml:1: the file: expected a map with keys of cluster"]),
    ("roles: {s: [", ["c.yaml:1: not YAML: "]),
    ("on: 1\nroles: {s: {}}", ["c.yaml:1: expected a key of text, found on: put it in quotes"]),
    ("roles: {s: {args: {x: &x [*x]}}}", ["c.yaml:1: roles.s.args.x[0]: an alias inside the value that it names"]),
    (
        "cluster: 2024-13-45\nroles: {s: {}}",
        ["c.yaml:1: cluster: cannot be read", "c.yaml:1: cluster: expected a name"],
    ),
    ("\0", ["c.yaml: not YAML: unacceptable character"]),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[text.replace("\n", " ")[:40] for text, _ in BAD])
def test_problem(text: str, expected: list[str]) -> None:
    found = problems_of(text)
    assert len(found) == len(expected), found
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)


def test_all_problems_come_at_once_in_the_order_of_their_lines() -> None:
    found = problems_of("security: maybe\nroles:\n  s:\n    count: x\n    nmae: y\n    count: 2\njob: 3")
    assert [problem.split(": ")[0] for problem in found] == ["c.yaml:1", "c.yaml:5", "c.yaml:6", "c.yaml:7"]


def test_a_bomb_of_aliases_is_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert any("more than 100000 values" in problem for problem in problems_of("\n".join(rows)))


def test_merge_keys() -> None:
    config = parse_config("roles:\n  a: &a {count: 2, threads: 3}\n  b:\n    <<: *a\n    count: 4", "c.yaml")
    assert (config.roles["b"].count, config.roles["b"].threads) == (4, 3)


def test_overrides() -> None:
    config = parse_config(
        GOOD,
        "c.yaml",
        [
            "roles.shard.count=8",
            "job.args.rate=0.5",
            "roles.shard.args.names.1=c",
            "security=off",
            "roles.extra.count=2",
        ],
    )
    assert config.roles["shard"].count == 8
    assert config.roles["shard"].args["names"] == ["a", "c"]
    assert config.roles["extra"].count == 2
    assert config.job is not None
    assert config.job.args == {"rate": 0.5}
    assert not config.security


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        (
            "roles.shard.count=two",
            "--set roles.shard.count=two: roles.shard.count: expected an integer from 1 to 10000",
        ),
        (
            "roles.shard.cuont=2",
            "--set roles.shard.cuont=2: roles.shard.cuont: there is no such key; did you mean 'count'",
        ),
        ("roles", "--set roles: expected KEY.KEY=VALUE"),
        ("a..b=1", "--set a..b=1: expected KEY.KEY=VALUE"),
        ("cluster.x=1", "--set cluster.x=1: cluster: expected a map that 'x' could be a key of, found 'demo'"),
        ("cluster=[", "--set cluster=[: the value is not YAML; put it in quotes"),
    ],
)
def test_bad_override(assignment: str, expected: str) -> None:
    assert problems_of(GOOD, assignment)[0].startswith(expected)


def test_dump_reads_back() -> None:
    config = parse_config(GOOD, "c.yaml", ["security=off"])
    assert parse_config(dump_config(config), "again.yaml") == config


def test_files(tmp_path: Path) -> None:
    target = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match="No such file"):
        load_config(target)
    target.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(target)
    target.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(target)
    target.write_text(GOOD + "python_path: ['..', /opt/x]\n")
    loaded = load_config(target)
    assert loaded.python_path() == [str(tmp_path.parent), "/opt/x"]
    assert loaded.resolve("model.pt") == tmp_path / "model.pt"
