from __future__ import annotations

import json
from pathlib import Path

from zrpc.config.loader import parse_config
from zrpc.config.schema import Loaded
from zrpc.launch.plan import Plan, Surroundings, plan_cluster
from zrpc.options import from_environment

TEXT = """\
roles:
  shard:
    count: 2
    entry: pkg.mod:main
    import: [pkg.one, pkg.two]
    args: {size: 3}
    env: {LEVEL: 2, ZRPC_NAME: mine}
    threads: 1
    restart: on-failure
    options: {rpc_timeout: 7}
  model: {script: models/net.pt}
job: {entry: "pkg.job:main", timeout: 9}
options: {rpc_timeout: 5, codecs: [script]}
python_path: [".."]
"""


def plans(text: str = TEXT, width: int | None = None) -> dict[str, Plan]:
    loaded = Loaded(parse_config(text, "c.yaml"), Path("/srv/app/configs/c.yaml"))
    inherited = {"HOME": "/home/u", "PYTHONPATH": "/lib", "ZRPC_NAME": "stale", "ZRPC_DEBUG": "1"}
    return plan_cluster(loaded, Surroundings("tcp://127.0.0.1:5", Path("/run/key"), inherited, width))


def test_commands() -> None:
    made = plans()
    assert list(made) == ["shard-0", "shard-1", "model", "job"]
    serve = ["--import", "pkg.one", "--import", "pkg.two", "--entry", "pkg.mod:main", "--args", '{"size": 3}']
    assert (made["shard-1"].program.module, made["shard-1"].program.arguments) == ("zrpc.workers.serve", serve)
    assert made["model"].program.module == "zrpc.workers.script"
    assert made["model"].program.arguments == ["/srv/app/configs/models/net.pt"]
    assert made["job"].program.arguments == ["--entry", "pkg.job:main"]
    assert [plan.program.gated for plan in made.values()] == [False, False, False, True]


def test_environment() -> None:
    environment = plans()["shard-1"].program.environment
    expected = {
        "HOME": "/home/u",
        "PYTHONPATH": "/srv/app:/lib",
        "LEVEL": "2",
        "OMP_NUM_THREADS": "1",
        "ZRPC_NAME": "shard-1",
        "ZRPC_ROLE": "shard",
        "ZRPC_INDEX": "1",
        "ZRPC_BROKER": "tcp://127.0.0.1:5",
        "ZRPC_KEY_FILE": "/run/key",
        "ZRPC_DEBUG": "1",
    }
    assert {key: environment[key] for key in expected} == expected
    assert "ZRPC_TERMINAL" not in environment
    options = from_environment(environment)
    assert (options.rpc_timeout, options.codecs, options.security) == (7.0, ("script",), True)


def test_a_terminal_is_told() -> None:
    environment = plans(width=132)["job"].program.environment
    assert (environment["ZRPC_TERMINAL"], environment["COLUMNS"]) == ("1", "132")
    assert "OMP_NUM_THREADS" not in environment


def test_charges() -> None:
    made = plans()
    assert made["shard-0"].charge.restart.on_failure
    assert not made["model"].charge.restart.on_failure
    assert (made["job"].charge.is_job, made["job"].charge.timeout) == (True, 9.0)


def test_arguments_are_json() -> None:
    text = "roles: {}\njob: {entry: 'a:b', args: {names: [x, 'y z'], deep: {k: null}}}"
    arguments = plans(text)["job"].program.arguments
    assert json.loads(arguments[-1]) == {"names": ["x", "y z"], "deep": {"k": None}}


def test_only_the_job_is_told_of_a_trace() -> None:
    loaded = Loaded(parse_config(TEXT, "c.yaml"), Path("/srv/app/configs/c.yaml"))
    made = plan_cluster(loaded, Surroundings("tcp://127.0.0.1:5", None, {}, trace=Path("/out.json")))
    told = {name: plan.program.environment.get("ZRPC_TRACE") for name, plan in made.items()}
    assert told == {"shard-0": None, "shard-1": None, "model": None, "job": "/out.json"}
    assert "ZRPC_TRACE" not in plans()["job"].program.environment
