"""Tables for people: status and findings, drawn with rich.

One rule: a table shows values and decides nothing; whoever wants to compute with them asks for JSON.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from zrpc.launch.doctor import Finding

STATE_STYLES = {"up": "green", "waiting": "yellow", "stopping": "yellow", "draining": "yellow"}
EVENT_STYLES = {
    "joined": "green",
    "began": "green",
    "took over": "yellow",
    "follows": "yellow",
    "standby": "yellow",
    "draining": "yellow",
    "left": "yellow",
    "died": "red",
    "fenced": "red",
}
FINDING_STYLES = {"good": "green", "warning": "yellow", "bad": "red"}


def print_status(console: Console, status: Mapping[str, Any]) -> None:
    """The cluster's line, and a table of its workers."""
    console.print(status_view(status), highlight=False)


def status_view(status: Mapping[str, Any]) -> Group:
    """What `print_status` prints."""
    members = sorted(status["members"], key=lambda member: member["id"])
    head = Text(
        f"cluster {status['cluster']}: broker {status['address']}, up {duration(status['uptime'])}, "
        f"{len(members)} worker{'' if len(members) == 1 else 's'}"
    )
    pair = pair_line(status)
    if pair:
        head.append(f"\n{pair}")
    table = Table()
    for column in ("name", "id", "role", "address", "state", "uptime", "calls", "memory"):
        is_number = column in ("id", "uptime", "calls", "memory")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for member in members:
        counted = member.get("statistics", {})
        state = "stopping" if member.get("stopping") else member["state"]
        table.add_row(
            member["name"],
            str(member["id"]),
            member["role"],
            member["address"],
            Text(state, STATE_STYLES.get(state, "")),
            duration(member["uptime"]),
            f"{counted.get('calls_served', 0):,}",
            size(counted.get("memory_bytes", 0)),
        )
    below = [Text(f"waiting for {name}", "yellow") for name in status.get("missing", ())]
    refused = {**status.get("refusals", {}), **status.get("refused_members", {}), **status.get("unreadable", {})}
    if refused:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
        below.append(Text(f"refused so far: {counts}"))
    return Group(head, table, *below)


def pair_line(status: Mapping[str, Any]) -> str:
    """The broker and its standby, in a line; empty when there is no standby."""
    if not status.get("is_in_charge", True):
        heard = "was never heard of" if status["lag"] is None else f"was heard of {status['lag']:.1f} s ago"
        return f"standby: not in charge; the broker at {status['primary']} {heard}, epoch {status['epoch']}"
    standby = status.get("standby")
    if standby is None:
        return ""
    where = f"primary, epoch {status['epoch']}; standby at {standby['address']}"
    if not standby["is_connected"]:
        return f"{where} is lost" + ("" if status["admits"] else ": nobody new is let in until it is back")
    return f"{where}, {standby['behind']} changes behind"


def event_line(event: Mapping[str, Any]) -> Text:
    """One entry of the broker's chronicle, in a line."""
    kind = str(event["kind"])
    at = datetime.datetime.fromtimestamp(float(event["at"])).strftime("%H:%M:%S.%f")[:-3]
    line = Text(f"{at} ")
    line.append(f"{kind:<9} ", EVENT_STYLES.get(kind, ""))
    line.append(str(event["name"]))
    notes = []
    if event.get("role") and event["role"] != event["name"]:
        notes.append(f"role {event['role']}")
    if event.get("pid"):
        notes.append(f"process {event['pid']} on {event['host']}")
    if event.get("life"):
        notes.append(f"life {event['life'] + 1}")
    if event.get("count", 1) > 1:
        notes.append(f"{event['count']} times")
    line.append(f" ({', '.join(notes)})" if notes else "")
    line.append(f": {event['why']}" if event.get("why") else "")
    return line


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """What the doctor found."""
    table = Table()
    for column in ("check", "about", "result", "detail"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        result = Text(finding.result, FINDING_STYLES[finding.result])
        table.add_row(finding.check, finding.about, result, finding.detail)
    console.print(table)


def duration(seconds: float) -> str:
    """Seconds as people read them: 4 s, 3:20, 2:00:05, 3 d 4 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 86400:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
