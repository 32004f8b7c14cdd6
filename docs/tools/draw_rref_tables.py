"""Write the tables and state diagrams of docs/rref-protocol.md from the data in zrpc.protocol.rref_model.

    python docs/tools/draw_rref_tables.py

One rule: what lies between the two markers is written here, and nowhere else; a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zrpc.protocol.rref_model import (
    OWNER_EVENTS,
    OWNER_STATES,
    OWNER_TABLE,
    USER_EVENTS,
    USER_STATES,
    USER_TABLE,
    Table,
)

PAGE = Path(__file__).resolve().parent.parent / "rref-protocol.md"
BEGIN = "<!-- drawn by docs/tools/draw_rref_tables.py: begin -->\n"
END = "<!-- drawn by docs/tools/draw_rref_tables.py: end -->\n"


def draw_diagram(table: Table) -> str:
    """A mermaid state diagram of the rows that change the state."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for state, rows in table.items():
        joined: dict[str, list[str]] = {}
        for event, row in rows.items():
            if row.next != state:
                joined.setdefault(row.next, []).append(event)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in joined.items()]
    return "\n".join([*lines, "```", ""])


def draw_words(title: str, words: Mapping[str, str]) -> str:
    """A table of words and their meaning."""
    return "\n".join([f"| {title} | meaning |", "| --- | --- |", *(f"| {w} | {m} |" for w, m in words.items()), ""])


def draw_table(table: Table) -> str:
    """All rows, one line each; the rows of a state that change and send nothing share a line."""
    lines = ["| state | event | next | effects |", "| --- | --- | --- | --- |"]
    for state, rows in table.items():
        quiet = [event for event, row in rows.items() if row.next == state and not row.effects]
        for event, row in rows.items():
            if event not in quiet:
                lines.append(f"| {state} | {event} | {row.next} | {', '.join(row.effects)} |")
        if quiet:
            lines.append(f"| {state} | {', '.join(quiet)} | {state} | |")
    return "\n".join([*lines, ""])


def render() -> str:
    """The part of the page that is drawn."""
    return "\n".join(
        [
            "### A user\n",
            draw_diagram(USER_TABLE),
            draw_words("state", USER_STATES),
            draw_words("event", USER_EVENTS),
            draw_table(USER_TABLE),
            "### An owner's record\n",
            draw_diagram(OWNER_TABLE),
            draw_words("state", OWNER_STATES),
            draw_words("event", OWNER_EVENTS),
            draw_table(OWNER_TABLE),
        ]
    )


def main() -> None:
    """Rewrite the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{render()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
