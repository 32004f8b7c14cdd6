"""Run directories: where a running cluster keeps its keys, its logs and the note by which others find it.

One rule: nobody but the user can read them (0700), and what is secret (0600 besides) goes when the cluster goes.

    <base>/<cluster>-<random>/   cluster.json   who runs here: address, key file, launcher (see `RunRecord`)
                                 key            the members' key, which cannot act as the broker
                                 broker.key     the cluster's secret, for the broker's process
                                 logs/NAME.log  what each process printed

<base> is $XDG_RUNTIME_DIR/zrpc, or zrpc-<uid> in the directory for temporary files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from zrpc.errors import ConfigError

FORMAT = 1
RECORD = "cluster.json"
KEY = "key"
BROKER_KEY = "broker.key"
LOGS = "logs"
KEPT = 5
"""Directories of clusters that failed, with their logs, that are kept for their user."""


@dataclass(frozen=True)
class RunRecord:
    """What others need to reach a running cluster."""

    cluster: str
    broker: str
    """The broker's address."""
    key_file: str | None
    """None when security is off."""
    pid: int
    started: float
    """When the process `pid` started, in seconds since 1970: a number alone may have been given to another since."""
    directory: str

    def is_running(self) -> bool:
        """Whether the process that wrote this still runs."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.Error:
            return False


def base_directory(environ: Mapping[str, str]) -> Path:
    """Where run directories are made, unless the user names one."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        return Path(runtime) / "zrpc"
    return Path(tempfile.gettempdir()) / f"zrpc-{os.getuid()}"


def check_private(path: Path) -> None:
    """Raise `ConfigError` unless `path` is a directory of this user that nobody else can enter."""
    status = path.lstat()
    why = ""
    if not stat.S_ISDIR(status.st_mode):
        why = "it is not a directory"
    elif status.st_uid != os.getuid():
        why = f"it belongs to user {status.st_uid}"
    elif stat.S_IMODE(status.st_mode) & 0o077:
        why = f"others can enter it (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 700 {path}"
    if why:
        raise ConfigError(f"run directory {path}", [why])


class RunDirectory:
    """The directory of one cluster, from its start to its end."""

    def __init__(self, path: Path, is_own: bool) -> None:
        self.path = path
        self.key_file = path / KEY
        self.broker_key_file = path / BROKER_KEY
        self.logs = path / LOGS
        self._is_own = is_own
        self.logs.mkdir(mode=0o700, exist_ok=True)

    @classmethod
    def create(cls, cluster: str, environ: Mapping[str, str], explicit: Path | None = None) -> RunDirectory:
        """Make one; at `explicit` when the user named a place. Raises `ConfigError` when that cannot be used."""
        try:
            if explicit is not None:
                return cls(_take(explicit), is_own=False)
            base = base_directory(environ)
            base.mkdir(mode=0o700, exist_ok=True)
            check_private(base)
            _prune(base)
            return cls(Path(tempfile.mkdtemp(prefix=f"{cluster}-", dir=base)), is_own=True)
        except OSError as error:
            raise ConfigError("run directory", [f"{error.filename}: {error.strerror}"]) from None

    def write_record(self, cluster: str, broker: str, key_file: Path | None) -> RunRecord:
        """Leave the note by which other commands find the cluster."""
        pid = os.getpid()
        key = None if key_file is None else str(key_file)
        record = RunRecord(cluster, broker, key, pid, psutil.Process(pid).create_time(), str(self.path))
        fresh = self.path / f"{RECORD}.new"
        fresh.write_text(json.dumps({"zrpc-cluster": FORMAT, **dataclasses.asdict(record)}, indent=2) + "\n")
        fresh.chmod(0o600)
        fresh.replace(self.path / RECORD)
        return record

    def finish(self, keep_logs: bool) -> bool:
        """Remove the secrets and the note; and everything, if the place was ours and nobody wants the logs.

        Returns whether the logs are still there.
        """
        for name in (RECORD, KEY, BROKER_KEY):
            (self.path / name).unlink(missing_ok=True)
        if keep_logs or not self._is_own:
            return True
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.parent.rmdir()
        except OSError:
            pass  # other clusters are there
        return False


def _take(path: Path) -> Path:
    """Use a directory that the user named; what an earlier cluster left there is taken over."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path)
    record = read_record(path)
    if record is not None and record.is_running():
        raise ConfigError(f"run directory {path}", [f"cluster {record.cluster!r} runs there (process {record.pid})"])
    for name in (RECORD, KEY, BROKER_KEY):
        (path / name).unlink(missing_ok=True)
    return path.resolve()


def read_record(path: Path) -> RunRecord | None:
    """The record in a run directory, None when there is none that can be read."""
    try:
        value = json.loads((path / RECORD).read_text())
        if value.pop("zrpc-cluster") != FORMAT:
            return None
        return RunRecord(**value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_running(environ: Mapping[str, str]) -> list[RunRecord]:
    """Clusters of this user that run on this host, the newest first."""
    base = base_directory(environ)
    try:
        check_private(base)
        records = [read_record(path) for path in base.iterdir()]
    except (OSError, ConfigError):
        return []
    return sorted((r for r in records if r is not None and r.is_running()), key=lambda r: r.started, reverse=True)


def _prune(base: Path) -> None:
    """Remove what clusters have left whose launcher could not, but for the logs of the last few."""
    dead: list[tuple[float, Path]] = []
    for path in base.iterdir():
        record = read_record(path)
        if record is not None and record.is_running():
            continue
        try:
            dead.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # its launcher has just removed it
        if record is not None:
            RunDirectory(path, is_own=False).finish(keep_logs=True)
    for _, path in sorted(dead, reverse=True)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
