"""From a configuration to processes: who is started, with which command and environment.

One rule: what a process is told travels in its arguments and its environment, so it can be started by hand as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zrpc.config.schema import ClusterConfig, Job, Loaded, Restart, Role
from zrpc.config.schema import Program as ConfiguredProgram
from zrpc.launch.events import Charge, RestartPolicy
from zrpc.launch.processes import Program

SERVE = "zrpc.workers.serve"
SCRIPT = "zrpc.workers.script"
JOB = "zrpc.workers.job"

TERMINAL_VARIABLE = "ZRPC_TERMINAL"
"""Set to 1 when what a process prints ends up on a terminal, so that live lines (see `printer`) make sense."""
TRACE_VARIABLE = "ZRPC_TRACE"
"""Names the file that a job writes a trace of its cluster to; `zrpc.tracing` reads it."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Surroundings:
    """What all processes of a cluster share."""

    broker: str
    key_file: Path | None
    environ: Mapping[str, str]
    """The launcher's own environment, which the processes inherit."""
    terminal_width: int | None = None
    """Columns that a process can fill; None when the output is no terminal."""
    trace: Path | None = None
    """The file that the job writes a trace of the cluster to."""


@dataclass(frozen=True)
class Plan:
    """One process: what the supervisor watches, and what is run for it."""

    charge: Charge
    program: Program


def charges_of(config: ClusterConfig) -> list[Charge]:
    """Who is there to be watched: the workers in the order of the file, then the job."""
    charges = [charge_of(config, role, index) for role, spec in config.roles.items() for index in range(spec.count)]
    if config.job is not None:
        job = config.job
        policy = _policy(job.restart)
        charges.append(Charge(job.name, True, stop_timeout=job.stop_timeout, restart=policy, timeout=job.timeout))
    return charges


def charge_of(config: ClusterConfig, role: str, index: int) -> Charge:
    """Worker number `index` of a role, from 0; it need not be one of those in the file."""
    spec = config.roles[role]
    name = spec.worker_name(role, index)
    return Charge(name, False, spec.start_timeout, spec.stop_timeout, _policy(spec.restart), role=role, index=index)


def _policy(restart: Restart) -> RestartPolicy:
    return RestartPolicy(
        restart.policy != "never",
        restart.policy == "always",
        restart.backoff,
        restart.max_backoff,
        restart.max_restarts,
    )


def plan_cluster(loaded: Loaded, around: Surroundings) -> dict[str, Plan]:
    """The processes of a cluster by name."""
    return {charge.name: plan_process(loaded, around, charge) for charge in charges_of(loaded.config)}


def plan_process(loaded: Loaded, around: Surroundings, charge: Charge) -> Plan:
    """What is run for one of the cluster's processes."""
    if charge.is_job:
        job = loaded.config.job
        assert job is not None
        environment = _environment(loaded, job, around, job.name, "job", 0)
        if around.trace is not None:
            environment[TRACE_VARIABLE] = str(around.trace)
        return Plan(charge, Program(JOB, _entry_arguments(job), environment, gated=True))
    spec = loaded.config.roles[charge.role]
    environment = _environment(loaded, spec, around, charge.name, charge.role, charge.index)
    module, arguments = _worker_command(loaded, spec)
    return Plan(charge, Program(module, arguments, environment))


def _worker_command(loaded: Loaded, spec: Role) -> tuple[str, list[str]]:
    if spec.script is not None:
        return SCRIPT, [str(loaded.resolve(spec.script))]
    arguments = [part for module in spec.imports for part in ("--import", module)]
    return SERVE, arguments + _entry_arguments(spec)


def _entry_arguments(spec: Role | Job) -> list[str]:
    if spec.entry is None:
        return []
    return ["--entry", spec.entry] + (["--args", json.dumps(spec.args)] if spec.args else [])


def _environment(
    loaded: Loaded, spec: ConfiguredProgram, around: Surroundings, name: str, role: str, index: int
) -> dict[str, str]:
    """The whole environment of a process; what the configuration sets wins, but for what joins it to the cluster."""
    environment = {k: v for k, v in around.environ.items() if not k.startswith("ZRPC_") or k == "ZRPC_DEBUG"}
    path = [*loaded.python_path(), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    environment["PYTHONUNBUFFERED"] = "1"
    if spec.threads is not None:
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(spec.threads)))
    if around.terminal_width is not None:
        environment.update({TERMINAL_VARIABLE: "1", "COLUMNS": str(around.terminal_width)})
    environment.update(spec.env)
    environment.update(
        ZRPC_NAME=name,
        ZRPC_ROLE=role,
        ZRPC_INDEX=str(index),
        ZRPC_BROKER=around.broker,
        ZRPC_OPTIONS=json.dumps(loaded.config.agent_options(spec)),
    )
    if around.key_file is not None:
        environment["ZRPC_KEY_FILE"] = str(around.key_file)
    return environment
