"""Looks at a running cluster for what goes wrong in practice: reach, versions, clocks, keys, addresses.

One rule: every check ends in a finding, also when it could not be made; nothing is changed.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from zrpc.clock import Clock, wall
from zrpc.errors import KeyFileError, ZrpcError
from zrpc.transport.curve import load_key_file

CLOCK_SKEW = 1.0
"""Seconds between two hosts' clocks that nobody notices; more makes logs and traces hard to read."""
INSPECT_TIMEOUT = 10.0
"""Longer than a worker waits for another one's ping."""


@dataclass(frozen=True)
class Finding:
    """The result of one check on one thing."""

    check: str
    about: str
    result: Literal["good", "warning", "bad"]
    detail: str = ""


class Cluster(Protocol):
    """Whom the doctor asks; an `AdminClient` is one."""

    def status(self, timeout: float = ...) -> dict[str, Any]:
        """What the broker knows."""

    def inspect(self, member_address: str, request: dict[str, Any], timeout: float = ...) -> dict[str, Any]:
        """What a worker says of itself."""


def examine(cluster: Cluster, key_file: str | None, clock: Clock = wall) -> Iterator[Finding]:
    """All findings, one after the other. Raises `BrokerUnreachable` when there is nobody to ask."""
    status = cluster.status(INSPECT_TIMEOUT)
    members = sorted(status["members"], key=lambda member: member["id"])
    yield _broker(status)
    yield _key_file(key_file)
    yield _versions(members)
    for member in members:
        yield _address(member, members)
    for member in members:
        yield _clock(cluster, member, clock)
    for member in members:
        yield _reach(cluster, member, [other["name"] for other in members])


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing is bad; warnings are allowed."""
    return not any(finding.result == "bad" for finding in findings)


def _broker(status: dict[str, Any]) -> Finding:
    missing = status.get("missing", ())
    if missing:
        return Finding("broker", status["address"], "warning", f"a group waits for {', '.join(missing)}")
    refused = sum(status.get("refusals", {}).values())
    if refused:
        return Finding(
            "broker", status["address"], "warning", f"{refused} peers without the cluster's key were refused"
        )
    return Finding("broker", status["address"], "good", f"{len(status['members'])} workers")


def _key_file(path: str | None) -> Finding:
    if path is None:
        return Finding("key file", "none", "warning", "security is off: anybody who reaches a port can run code")
    try:
        keyring = load_key_file(path)
    except KeyFileError as error:
        return Finding("key file", path, "bad", str(error))
    directory = Path(path).resolve().parent
    mode = stat.S_IMODE(os.stat(directory).st_mode)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return Finding("key file", path, "bad", f"others can replace it: {directory} has mode {mode:04o}")
    return Finding("key file", path, "good", f"cluster {keyring.cluster}, key {keyring.fingerprint()}")


def _versions(members: list[dict[str, Any]]) -> Finding:
    versions = Counter(str(member.get("software", "")) for member in members)
    if len(versions) <= 1:
        return Finding("versions", "all workers", "good", next(iter(versions), "") or "nobody says")
    common = versions.most_common(1)[0][0]
    odd = [f"{m['name']} has {m.get('software') or 'none'}" for m in members if m.get("software", "") != common]
    return Finding("versions", "all workers", "bad", f"most have {common}; {', '.join(odd)}")


def _address(member: dict[str, Any], members: list[dict[str, Any]]) -> Finding:
    address = member["address"]
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if host in ("0.0.0.0", "*", "[::]"):
        return Finding("address", member["name"], "bad", f"{address} leads nowhere: set advertise in its options")
    hosts = {other["host"] for other in members}
    if host.startswith(("127.", "localhost", "[::1]")) and len(hosts) > 1:
        others = ", ".join(sorted(hosts - {member["host"]}))
        return Finding(
            "address", member["name"], "bad", f"{address} is of {member['host']} alone; others are on {others}"
        )
    return Finding("address", member["name"], "good", address)


def _clock(cluster: Cluster, member: dict[str, Any], clock: Clock) -> Finding:
    before = clock()
    try:
        theirs = float(cluster.inspect(member["address"], {"what": "ping"}, INSPECT_TIMEOUT)["wall"])
    except (ZrpcError, KeyError, TypeError, ValueError) as error:
        return Finding("clock", member["name"], "bad", f"it does not answer: {error}")
    after = clock()
    # Their reading was taken at some moment between ours: the rest is the difference of the clocks.
    skew = max(before - theirs, theirs - after, 0.0)
    if skew > CLOCK_SKEW:
        return Finding("clock", member["name"], "warning", f"{skew:.1f} s away from this host's")
    return Finding("clock", member["name"], "good", f"within {max(skew, after - before):.3f} s")


def _reach(cluster: Cluster, member: dict[str, Any], names: list[str]) -> Finding:
    try:
        found = cluster.inspect(member["address"], {"what": "reach"}, INSPECT_TIMEOUT)["reach"]
    except (ZrpcError, KeyError) as error:
        return Finding("reach", member["name"], "bad", f"it does not answer: {error}")
    wrong = [f"{name}: {answer['error']}" for name, answer in sorted(found.items()) if "error" in answer]
    wrong += [f"{name}: it does not know of it" for name in names if name not in found and name != member["name"]]
    if wrong:
        return Finding("reach", member["name"], "bad", "; ".join(wrong))
    slowest = max((answer["ms"] for answer in found.values()), default=0.0)
    return Finding("reach", member["name"], "good", f"reaches {len(found)}, the slowest in {slowest:.1f} ms")
