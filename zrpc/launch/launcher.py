"""A whole cluster on this host: keys, broker, processes, and the way back to nothing.

One rule: what was begun is undone in the reverse order, whatever happens: job, workers, broker, run directory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from zrpc.clock import Clock, monotonic
from zrpc.config.schema import Loaded
from zrpc.errors import ConfigError
from zrpc.launch.conductor import Conductor
from zrpc.launch.events import Interrupted, Joined, Remark, ScaleAsked, StopAsked
from zrpc.launch.exits import INTERRUPTED, SUCCESS
from zrpc.launch.plan import Plan, Surroundings, charge_of, charges_of, plan_cluster, plan_process
from zrpc.launch.printer import Printer
from zrpc.launch.processes import GuardedSpawner, Spawner
from zrpc.launch.request import Broker, BrokerRequest, StartBroker
from zrpc.launch.rundir import RunDirectory
from zrpc.launch.signals import signals_told
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import new_keyring, write_key_file

BROKER_STOP_SECONDS = 1.0
DEFAULT_WIDTH = 80


@dataclass(frozen=True)
class Presentation:
    """How the launcher shows itself: where it writes, and how much."""

    out: TextIO
    quiet: bool = False
    verbose: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.out.isatty()

    def width(self) -> int:
        """Columns of the terminal."""
        try:
            return os.get_terminal_size(self.out.fileno()).columns or DEFAULT_WIDTH
        except (OSError, ValueError):
            return DEFAULT_WIDTH


class Launcher:
    """Runs the cluster that a configuration describes."""

    def __init__(
        self,
        loaded: Loaded,
        start_broker: StartBroker,
        *,
        show: Presentation | None = None,
        run_dir: Path | None = None,
        trace: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        spawner: Spawner | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self._loaded = loaded
        self._start_broker = start_broker
        self._show = show or Presentation(sys.stdout)
        configured = loaded.config.run_dir
        self._run_dir = run_dir or (loaded.resolve(configured) if configured else None)
        if trace is not None and loaded.config.job is None:
            raise ConfigError("--trace", ["the cluster has no job, whose run would be recorded: use `zrpc trace FILE`"])
        self._trace = None if trace is None else trace.absolute()
        self._environ = environ
        self._spawner = spawner or GuardedSpawner()
        self._clock = clock

    def run(self) -> int:
        """Start the cluster, wait for its end, and return the exit code (see `exits`).

        Raises `ConfigError` or `KeyFileError` before anything was started.
        """
        early: list[int] = []
        tell: list[Callable[[int], None]] = [early.append]
        with signals_told(lambda signum: tell[-1](signum)), contextlib.ExitStack() as stack:
            directory = RunDirectory.create(self._loaded.config.cluster, self._environ, self._run_dir)
            code = [SUCCESS]
            printer = self._printer(directory)
            stack.callback(lambda: self._finish(directory, printer, code[0]))
            mailbox = _Mailbox()
            broker = self._start(directory, mailbox, stack)
            conductor = self._conductor(directory, printer, broker)
            tell.append(lambda signum: conductor.post(Interrupted(signum)))
            mailbox.open(conductor)
            for signum in early:
                conductor.post(Interrupted(signum))
            code[0] = conductor.run()
        return code[0]

    def _printer(self, directory: RunDirectory) -> Printer:
        config, show = self._loaded.config, self._show
        job = config.job
        return Printer(
            show.out,
            [charge.name for charge in charges_of(config)],
            terminal=show.is_terminal,
            width=show.width(),
            logs=directory.logs,
            quiet=show.quiet,
            verbose=show.verbose,
            shown=frozenset([job.name]) if show.quiet and job is not None else None,
        )

    def _start(self, directory: RunDirectory, mailbox: _Mailbox, stack: contextlib.ExitStack) -> Broker:
        config = self._loaded.config
        keyring = new_keyring(config.cluster) if config.security else None
        if keyring is not None:
            write_key_file(keyring, directory.broker_key_file)
            write_key_file(keyring.for_members(), directory.key_file)
        workers = tuple(charge.name for charge in charges_of(config) if not charge.is_job)
        key_file = None if keyring is None else directory.broker_key_file
        times = config.broker
        options = RegistryOptions.made_of(
            times.heartbeat_interval, times.death_timeout, times.silence_timeout, times.names_per_host
        )
        request = BrokerRequest(
            config.cluster,
            times.bind,
            keyring,
            mailbox.joined,
            mailbox.stop_asked,
            workers,
            options,
            key_file,
            mailbox.remark,
            tuple(config.roles),
            mailbox.scale,
            standby_bind=times.standby_bind if times.standby else "",
        )
        broker = self._start_broker(request)
        stack.callback(lambda: broker.stop(BROKER_STOP_SECONDS))
        directory.write_record(config.cluster, broker.address, self._key_file(directory))
        return broker

    def _key_file(self, directory: RunDirectory) -> Path | None:
        return directory.key_file if self._loaded.config.security else None

    def _conductor(self, directory: RunDirectory, printer: Printer, broker: Broker) -> Conductor:
        width = self._show.width() - printer.prefix_width if self._show.is_terminal else None
        around = Surroundings(broker.address, self._key_file(directory), self._environ, width, self._trace)
        plans = plan_cluster(self._loaded, around)
        if not self._loaded.config.security:
            printer.warn("security is off: anybody who reaches a port of this cluster can run code in it")
        printer.note(f"cluster {self._loaded.config.cluster}: starting {', '.join(plans)}")
        printer.detail(f"broker at {broker.address}, run directory {directory.path}")

        def plan_more(role: str, index: int) -> Plan:
            return plan_process(self._loaded, around, charge_of(self._loaded.config, role, index))

        return Conductor(plans, printer, self._spawner, self._clock, broker.exited, plan_more)

    def _finish(self, directory: RunDirectory, printer: Printer, code: int) -> None:
        failed = code != SUCCESS and code < INTERRUPTED
        if self._trace is not None and self._trace.exists():
            printer.note(f"the trace is in {self._trace}")
        if directory.finish(keep_logs=failed) and failed:
            printer.warn(f"logs are kept in {directory.logs}")
        printer.close()


class _Mailbox:
    """Holds what the broker tells before there is a conductor to take it."""

    def __init__(self) -> None:
        self._conductor: Conductor | None = None

    def open(self, conductor: Conductor) -> None:
        """From now on pass everything on; before, nobody was started, so nobody can have joined."""
        self._conductor = conductor

    def joined(self, name: str) -> None:
        if self._conductor is not None:
            self._conductor.post(Joined(name))

    def remark(self, text: str) -> None:
        if self._conductor is not None:
            self._conductor.post(Remark(text))

    def scale(self, role: str, count: int) -> None:
        if self._conductor is not None:
            self._conductor.post(ScaleAsked(role, count))

    def stop_asked(self, why: str) -> None:
        if self._conductor is not None:
            self._conductor.post(StopAsked(why))
