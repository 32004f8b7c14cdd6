"""What the cluster's processes print: prefixed by their names for the user, and kept as it came in log files.

One rule: a line is shown whole or not at all. What a process writes after a carriage return is a live line: on a
terminal the last one stays at the bottom and is overwritten; elsewhere, and in the logs, it counts only when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

TAIL_LINES = 20
"""Last lines of a worker that are shown when it fails."""
MAX_LINE_BYTES = 64 * 1024
"""A longer line is broken: a process that prints no line ends must not fill the launcher's memory."""
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
LAUNCHER = "zrpc"


class _Stream:
    """The output of one process: the unfinished line, the last lines, the log."""

    def __init__(self, log: BinaryIO | None) -> None:
        self.partial = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.log = log

    def feed(self, data: bytes) -> list[str]:
        """Lines that `data` completes."""
        *lines, self.partial = (self.partial + data).split(b"\n")
        while len(self.partial) > MAX_LINE_BYTES:
            lines.append(self.partial[:MAX_LINE_BYTES])
            self.partial = self.partial[MAX_LINE_BYTES:]
        return [self._keep(line) for line in lines]

    def finish(self) -> list[str]:
        """What is left without a line end."""
        rest, self.partial = self.partial, b""
        return [self._keep(rest)] if _settled(rest) else []

    def live(self) -> str | None:
        """The unfinished line, if it began with a carriage return."""
        return _settled(self.partial).decode("utf-8", "replace") if b"\r" in self.partial else None

    def _keep(self, line: bytes) -> str:
        settled = _settled(line)
        if self.log is not None:
            self.log.write(settled + b"\n")
            self.log.flush()
        text = settled.decode("utf-8", "replace")
        self.tail.append(text)
        return text


def _settled(line: bytes) -> bytes:
    """What a terminal would show of a line: the part after the last carriage return that is not at its end."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


class Printer:
    """Writes for the user. `terminal` says that the output is one: then there are colours and live lines."""

    def __init__(
        self,
        out: TextIO,
        names: Sequence[str] = (),
        *,
        terminal: bool = False,
        width: int = 80,
        logs: Path | None = None,
        quiet: bool = False,
        verbose: bool = False,
        shown: frozenset[str] | None = None,
    ) -> None:
        self._out = out
        self._terminal = terminal
        self._width = width
        self._quiet = quiet
        self._verbose = verbose
        self._shown = shown
        self._margin = max(map(len, (*names, LAUNCHER)))
        self._logs = logs
        self._colours: dict[str, int] = {}
        self._streams: dict[str, _Stream] = {}
        for name in names:
            self.enlist(name)
        self._live = ""
        self.is_broken = False
        """Nobody reads any more: the pipe that the output went to is closed."""

    @property
    def prefix_width(self) -> int:
        """Columns that the name before each line takes."""
        return self._margin + len(" | ")

    def enlist(self, name: str) -> None:
        """One more process may write."""
        if name not in self._streams:
            log = (self._logs / f"{name}.log").open("ab") if self._logs else None
            self._streams[name] = _Stream(log)
            self._colours[name] = COLOURS[len(self._colours) % len(COLOURS)]

    def feed(self, name: str, data: bytes) -> None:
        """Take what a process has written."""
        stream = self._streams[name]
        self._show(name, stream.feed(data))
        live = stream.live()
        if self._terminal and live is not None and self._is_shown(name):
            self._write("", self._prefix(name, live[: max(1, self._width - self.prefix_width - 1)]))

    def finish(self, name: str) -> None:
        """The process has ended: show what it left unfinished."""
        self._show(name, self._streams[name].finish())

    def note(self, text: str) -> None:
        """A line of the launcher's own."""
        if not self._quiet:
            self._write(self._prefix(LAUNCHER, text) + "\n", self._live)

    def detail(self, text: str) -> None:
        """A line of the launcher's own for those who asked for more."""
        if self._verbose:
            self.note(text)

    def warn(self, text: str) -> None:
        """A line of the launcher's own that is shown in any case."""
        self._write(self._prefix(LAUNCHER, self._paint(text, 31)) + "\n", self._live)

    def blame(self, name: str, why: str, *, tail: bool = True) -> None:
        """Say that a process failed, with its last lines if `tail`."""
        if not tail:
            self.warn(f"{name} {why}")
            return
        lines = self._streams[name].tail
        self.warn(f"{name} {why}" + ("; its last lines:" if lines else ", having printed nothing"))
        for line in lines:
            self.warn(f"  {line}")

    def close(self) -> None:
        """Remove the live line and close the logs."""
        self._write("", "")
        for stream in self._streams.values():
            if stream.log is not None:
                stream.log.close()

    def _is_shown(self, name: str) -> bool:
        return self._shown is None or name in self._shown

    def _show(self, name: str, lines: Sequence[str]) -> None:
        if lines and self._is_shown(name):
            self._write("".join(self._prefix(name, line) + "\n" for line in lines), "")

    def _prefix(self, name: str, text: str) -> str:
        return f"{self._paint(name.ljust(self._margin), self._colours.get(name, 2))} | {text}"

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._terminal else text

    def _write(self, lines: str, live: str) -> None:
        """Write whole lines above the live line, then the live line."""
        text = lines
        if self._terminal and (self._live or live):
            text = ("\r\x1b[2K" if self._live else "") + lines + live
        self._live = live
        if not text or self.is_broken:
            return
        encoding = self._out.encoding or "utf-8"
        try:
            self._out.write(text.encode(encoding, "replace").decode(encoding))
            self._out.flush()
        except (OSError, ValueError):
            self.is_broken = True
