from __future__ import annotations

import io
from pathlib import Path

import pytest

from zrpc.launch.printer import MAX_LINE_BYTES, TAIL_LINES, Printer


def printed(chunks: list[tuple[str, bytes]], *, terminal: bool = False) -> str:
    out = io.StringIO()
    printer = Printer(out, ["a", "bbbb"], terminal=terminal, width=30)
    for name, data in chunks:
        printer.feed(name, data)
    printer.finish("a")
    printer.finish("bbbb")
    return out.getvalue()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([("a", b"one\ntwo\n")], "a    | one\na    | two\n"),
        ([("a", b"on"), ("bbbb", b"x\n"), ("a", b"e\n")], "bbbb | x\na    | one\n"),
        ([("a", b"no end")], "a    | no end\n"),
        ([("a", b"10%\r20%\r100%\n")], "a    | 100%\n"),
        ([("a", b"dos\r\n")], "a    | dos\n"),
        ([("a", b"\xff\n")], "a    | \ufffd\n"),
        ([("a", "é".encode()[:1]), ("a", "é".encode()[1:] + b"\n")], "a    | é\n"),
        ([("a", b"")], ""),
    ],
)
def test_plain(chunks: list[tuple[str, bytes]], expected: str) -> None:
    assert printed(chunks) == expected


def test_a_live_line_stays_below_whole_lines() -> None:
    name = "\x1b[36ma   \x1b[0m | "
    other = "\x1b[33mbbbb\x1b[0m | "
    clear = "\r\x1b[2K"
    got = printed([("a", b"\rstep 1"), ("a", b"\rstep 2"), ("bbbb", b"hello\n"), ("a", b"\rdone\n")], terminal=True)
    steps = [f"{name}step 1", f"{clear}{name}step 2", f"{clear}{other}hello\n", f"{name}done\n"]
    assert got == "".join(steps)


def test_a_live_line_is_cut_to_the_terminals_width() -> None:
    assert printed([("a", b"\r" + b"x" * 100)], terminal=True).split(" | ")[1].rstrip("\n").startswith("x" * 22)
    assert "x" * 23 not in printed([("a", b"\r" + b"x" * 100)], terminal=True).split("\x1b[2K")[0]


def test_a_line_without_end_is_broken() -> None:
    out = io.StringIO()
    Printer(out, ["a"]).feed("a", b"x" * (3 * MAX_LINE_BYTES))
    assert out.getvalue().count("\n") == 2


def test_logs_and_blame(tmp_path: Path) -> None:
    out = io.StringIO()
    printer = Printer(out, ["a", "b"], logs=tmp_path, quiet=True, shown=frozenset())
    printer.feed("a", b"".join(f"line {i}\n".encode() for i in range(100)) + b"\r50%\r100%\n")
    printer.note("not shown")
    printer.detail("not shown either")
    assert out.getvalue() == ""
    printer.blame("a", "ended with exit code 3")
    printer.blame("b", "was killed by SIGKILL")
    printer.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "zrpc | a ended with exit code 3; its last lines:"
    assert lines[1:-1] == [f"zrpc |   line {i}" for i in range(101 - TAIL_LINES, 100)] + ["zrpc |   100%"]
    assert lines[-1] == "zrpc | b was killed by SIGKILL, having printed nothing"
    assert (tmp_path / "a.log").read_text().splitlines()[98:] == ["line 98", "line 99", "100%"]


class _Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_output_is_noticed() -> None:
    printer = Printer(_Closed(), ["a"])
    printer.feed("a", b"x\n")
    assert printer.is_broken
    printer.feed("a", b"x\n")
    printer.close()
