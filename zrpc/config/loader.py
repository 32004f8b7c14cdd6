"""Reads a configuration file: text, then overrides, then the schema, then what one key says of another.

One rule: all problems are found before anything is raised, and each says its file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from zrpc.config.problems import check_names, describe
from zrpc.config.schema import ClusterConfig, Loaded, Program
from zrpc.config.tree import Path as Location
from zrpc.config.tree import Tree, dotted, override, read_tree, show
from zrpc.errors import ConfigError

MAX_FILE_BYTES = 1 << 20


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """The configuration in a file, with overrides such as `roles.shard.count=8` applied.

    Raises `ConfigError` with one line for each problem.
    """
    target = Path(path)
    try:
        with target.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(str(path), [f"{path}: {error.strerror or error}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"{path}: not UTF-8 text (byte {error.start})"]) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(str(path), [f"{path}: larger than {MAX_FILE_BYTES} bytes"])
    return Loaded(parse_config(text, str(path), overrides), target.resolve())


def parse_config(text: str, source: str, overrides: Iterable[str] = ()) -> ClusterConfig:
    """The configuration in some text; `source` names it in problems. Raises `ConfigError`."""
    tree = read_tree(text, source)
    if not tree.problems:
        for assignment in overrides:
            override(tree, assignment)
    config = _validate(tree)
    if tree.problems or config is None:
        raise ConfigError(source, sorted(tree.problems, key=_line))
    return config


def _line(problem: str) -> int:
    """The line that a problem names; those of no line first."""
    match = re.match(r"[^\n]*?:(\d+): ", problem)
    return int(match[1]) if match else 0


def _validate(tree: Tree) -> ClusterConfig | None:
    if tree.value is None:
        if not tree.problems:
            tree.problems.append(f"{tree.source}: it is empty; expected roles or a job")
        return None
    try:
        config = ClusterConfig.model_validate(tree.value)
    except ValidationError as error:
        tree.problems += describe(tree, ClusterConfig, error.errors(include_url=False))
        return None
    tree.problems += _check_whole(tree, config)
    return config


def _check_whole(tree: Tree, config: ClusterConfig) -> list[str]:
    """What no single key shows: empty clusters, names twice, entries that exclude one another."""
    problems = []
    if not config.roles and config.job is None:
        problems.append(f"{tree.place_of(())}: expected at least one role or a job, found neither")
    names = {role: spec.worker_names(role) for role, spec in config.roles.items()}
    if config.job is not None:
        names[""] = [config.job.name]
    problems += check_names(tree, names)
    programs: dict[Location, Program] = {("roles", role): spec for role, spec in config.roles.items()}
    if config.job is not None:
        programs["job",] = config.job
    for at, program in programs.items():
        problems += _check_arguments(tree, (*at, "args"), program.args)
    for role, spec in config.roles.items():
        if spec.script is not None and (spec.entry is not None or spec.imports):
            path: Location = ("roles", role, "script")
            problems.append(
                f"{tree.place_of(path)}: {dotted(path)}: expected no entry and no import beside a script, "
                f"found {show(spec.entry or spec.imports)}"
            )
    return problems


def _check_arguments(tree: Tree, path: Location, args: dict[str, Any]) -> list[str]:
    """Arguments travel to the process as JSON, so they are what JSON can hold, under names of Python."""
    problems = []
    for name, value in args.items():
        here = (*path, name)
        if not name.isidentifier():
            problems.append(f"{tree.place_of(here)}: {dotted(here)}: expected an argument's name, found {name!r}")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            problems.append(f"{tree.place_of(here)}: {dotted(here)}: expected text, numbers, lists and maps only")
    return problems


def dump_config(config: ClusterConfig) -> str:
    """The configuration as YAML with every default filled in; reading it again gives the same configuration."""
    value: dict[str, Any] = config.model_dump(by_alias=True)
    value = {key: part for key, part in value.items() if part is not None}
    return yaml.safe_dump(_tidy(value), sort_keys=False, allow_unicode=True)


def _tidy(value: Any) -> Any:
    """Drop the keys that hold nothing: absent and null mean the same."""
    if isinstance(value, dict):
        return {key: _tidy(part) for key, part in value.items() if part is not None}
    return [_tidy(part) for part in value] if isinstance(value, list) else value
