"""What is left of references when a worker ends, and who is told.

One rule: what this worker still holds is let go of in good order, and shown in a warning with where it was made; what
others still hold of this worker's values is a leak: a warning too, or an error for programs that ask for that.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from zrpc.errors import RRefMisuse
from zrpc.runtime.context import current_agent
from zrpc.runtime.sites import Leftover

logger = logging.getLogger("zrpc")

SHOWN = 20
"""Lines of a warning, at most."""


def _delete_all_user_and_unforked_owner_rrefs() -> None:
    """Let go of all references of this worker, tell their owners, and log a warning of those it held until now."""
    agent = current_agent("_delete_all_user_and_unforked_owner_rrefs")
    left = agent.references.drop_all()
    if left:
        logger.warning(
            "worker %s ends while its program still holds %s; they are let go of:\n%s\n"
            "Delete them, or let them go out of scope, before shutdown().",
            agent.info.name,
            _count(len(left), "reference to a value of another worker", "references to values of other workers"),
            _table(f"to a value of {one.who.name!r}: {one.site}" for one in left),
        )


def _destroy_rref_context(ignore_leak: bool) -> None:
    """Look for values of this worker that others still refer to, which are lost to them now.

    Logs a warning of them, or, without `ignore_leak`, raises `RRefMisuse`, with "Leaking RRef" for each.
    """
    agent = current_agent("_destroy_rref_context")
    left = agent.references.held_elsewhere()
    if not left:
        return
    if not ignore_leak:
        raise RRefMisuse("\n".join(map(_leak, left)))
    logger.warning(
        "worker %s ends while others hold %s, which are lost to them now:\n%s",
        agent.info.name,
        _count(len(left), "reference to a value of it", "references to values of it"),
        _table(f"held by {one.who.name!r}; the value: {one.site}" for one in left),
    )


def _leak(one: Leftover) -> str:
    return f"Leaking RRef {one.rref_id} with fork Id {one.fork_id}, held by {one.who.name!r}; the value: {one.site}"


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def _table(lines: Iterable[str]) -> str:
    """Each different line once, with how often there is one like it; the most frequent first."""
    counts = Counter(lines).most_common()
    shown = [f"  {count} {line}" for line, count in counts[:SHOWN]]
    if len(counts) > SHOWN:
        shown.append(f"  and others, from {len(counts) - SHOWN} more places")
    return "\n".join(shown)
