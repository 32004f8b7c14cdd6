"""The page about the reference protocol shows the tables that the code runs on."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_drawn_from_the_tables():
    tool = runpy.run_path(str(DOCS / "tools" / "draw_rref_tables.py"))
    page = (DOCS / "rref-protocol.md").read_text(encoding="utf-8")
    assert f"{tool['BEGIN']}\n{tool['render']()}\n{tool['END']}" in page, "run docs/tools/draw_rref_tables.py"
