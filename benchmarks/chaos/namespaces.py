"""A network of namespaces for the chaos: a bridge in one, a worker in each of the others, and cables that can be cut.

It needs the right to make network namespaces (root, or CAP_SYS_ADMIN and CAP_NET_ADMIN) and the `ip` command.
"""

from __future__ import annotations

import os
import shutil
import subprocess

SUBNET = "10.213.77"


class NotPermitted(Exception):
    """No namespaces here; the text says why."""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Namespaces:
    """Place 0 is the hub, beside the bridge, and cannot be cut off; the others are 1 to `count`."""

    def __init__(self, count: int) -> None:
        self._prefix = f"zc{os.getpid() % 100_000}"
        self._names: list[str] = []
        if shutil.which("ip") is None:
            raise NotPermitted("there is no `ip` command")
        try:
            self._make(count)
        except BaseException:
            self.close()
            raise

    def _make(self, count: int) -> None:
        hub = self._add("hub")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{SUBNET}.254/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for place in range(1, count + 1):
            name = self._add(str(place))
            ip("-n", hub, "link", "add", f"p{place}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", hub, "link", "set", f"p{place}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{place}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def _add(self, what: str) -> str:
        name = f"{self._prefix}-{what}"
        ip("netns", "add", name)
        self._names.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def host(self, place: int) -> str:
        """The address of a place."""
        return f"{SUBNET}.{place or 254}"

    def command(self, place: int) -> list[str]:
        """What comes before a command that is to run there."""
        return ["ip", "netns", "exec", self._names[place]]

    def cut(self, place: int) -> None:
        """Cut a place off from everybody."""
        ip("-n", self._names[0], "link", "set", f"p{place}", "down")

    def heal(self, place: int) -> None:
        ip("-n", self._names[0], "link", "set", f"p{place}", "up")

    def part(self, one: int, other: int) -> None:
        """Have nothing pass between two places, which everybody else reaches."""
        self._route("add", one, other)
        self._route("add", other, one)

    def rejoin(self, one: int, other: int) -> None:
        self._route("del", one, other)
        self._route("del", other, one)

    def _route(self, verb: str, one: int, other: int) -> None:
        ip("-n", self._names[one], "route", verb, "blackhole", f"{self.host(other)}/32")

    def close(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        self._names.clear()
