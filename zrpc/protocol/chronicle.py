"""What has happened in a cluster, as its broker saw it: a bounded list of numbered entries.

One rule: the newest entries are kept, and what repeats itself is one entry with a count, so that a flood of one thing
does not push out the others.

    kind       what happened
    ---------  -----------------------------------------------------------------------------------
    began      this broker began (`why`: whether it follows an earlier one)
    joined     a worker is up; `life` says how often its name has lived before
    draining   a worker takes no new work
    left       a worker left of its own will
    died       a worker is gone otherwise; `why` says how that was noticed
    stopping   somebody asked workers to stop
    scaling    somebody asked for another number of workers of a role
    fenced     a life that was declared over, or that has a newer one, spoke: it was told to stop
    refused    a process was not let in, with the reason
    took over  this broker stood by, and is in charge now
    follows    this broker was in charge, and stands by now
    standby    another broker stands by for this one, or does so no more
    denied     peers were turned away before they could say anything: a wrong key, or no encryption
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from zrpc.errors import StaleIncarnation
from zrpc.protocol.effects import (
    MemberDraining,
    MemberGone,
    MemberUp,
    News,
    PeerRefused,
    ScaleRequested,
    StandbyJoined,
    StandbyLost,
    SteppedDown,
    StopRequested,
    TookOver,
)

KEPT: Final = 1000
MAX_ANSWER: Final = 200
"""Entries in one answer."""


class Chronicle:
    """The entries. Times are given by the caller: seconds since 1970, for people."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=kept)
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, at: float, kind: str, name: str = "", why: str = "", **more: Any) -> None:
        """Something has happened."""
        self._number += 1
        last = self._entries[-1] if self._entries else None
        if last is not None and (last["kind"], last["name"], last["why"]) == (kind, name, why) and not more:
            last.update(number=self._number, at=at, count=last["count"] + 1)
            return
        entry = {"number": self._number, "at": at, "kind": kind, "name": name, "why": why[:1024], "count": 1, **more}
        self._entries.append(entry)

    def note_news(self, at: float, news: News) -> None:
        """What the registry announced, if people want to know it."""
        if isinstance(news, (MemberUp, MemberDraining, MemberGone)):
            member = news.member
            more = {"id": member.id, "role": member.role, "life": member.life, "pid": member.pid, "host": member.host}
            kind = "joined" if isinstance(news, MemberUp) else "draining"
            why = ""
            if isinstance(news, MemberGone):
                kind, why = news.cause, news.why
            self.note(at, kind, member.name, why, **more)
        elif isinstance(news, StopRequested):
            self.note(at, "stopping", ", ".join(news.names or ()) or "everybody", news.why)
        elif isinstance(news, TookOver):
            self.note(at, "took over", "", news.why)
        elif isinstance(news, SteppedDown):
            self.note(at, "follows", news.address, "it is in charge, with a higher epoch")
        elif isinstance(news, StandbyJoined):
            self.note(at, "standby", news.address, "it follows this broker")
        elif isinstance(news, StandbyLost):
            self.note(at, "standby", news.address, "it has left" if news.has_left else "it is lost")
        elif isinstance(news, ScaleRequested):
            self.note(at, "scaling", news.role, f"to {news.count}")
        elif isinstance(news, PeerRefused):
            self.note(
                at, "fenced" if isinstance(news.error, StaleIncarnation) else "refused", news.name, str(news.error)
            )

    def since(self, number: int) -> list[dict[str, Any]]:
        """Copies of the entries after that number, oldest first; the newest `MAX_ANSWER` of them."""
        fresh = [dict(entry) for entry in self._entries if entry["number"] > number]
        return fresh[-MAX_ANSWER:]
