"""The README and the pages in docs say what is so: links, commands, variables, tables, and examples that run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from test_layers import LAYERS

import zrpc
from zrpc.cli.main import main
from zrpc.config.loader import parse_config
from zrpc.launch import printer, rundir, supervisor
from zrpc.options import AgentOptions
from zrpc.protocol.membership import RegistryOptions
from zrpc.runtime import executor, peers
from zrpc.wire import envelope

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [path for folder in ("zrpc", "cli", "workers") for path in sorted((ROOT / folder).rglob("*.py"))]

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_LINE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:\w+/)+(?:\w+\.(?:py|md|yaml))?")
VARIABLE = re.compile(r"(?<![A-Z_])ZRPC_[A-Z_]*[A-Z]")
COMMAND = re.compile(r"^(?:\$ |[A-Z_]+='[^']*' )*zrpc ([a-z].*)$")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page that are marked with a language."""
    return [body for marked, body in BLOCK.findall(text) if marked == language]


def code(text: str) -> list[str]:
    """What stands in a page as code: the lines of unmarked blocks, and what is between backticks elsewhere."""
    lines = [line for body in blocks(text, "") for line in body.splitlines()]
    return [*lines, *IN_LINE.findall(BLOCK.sub("", text))]


def anchors(text: str) -> set[str]:
    """The names that headings get as targets of links."""
    headings = re.findall(r"^#+ +(.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ------------------------------------------------------------------------------------------- what pages name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in LINK.findall(read(page)):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(read(target))):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = {text for text in code(read(page)) if FILE.fullmatch(text)}
    assert [name for name in sorted(named) if not (ROOT / name).exists() and not (ROOT / "zrpc" / name).exists()] == []


def commands_in(text: str) -> Iterator[list[str]]:
    """The words after `zrpc` of every command in a page."""
    for line in code(text):
        match = COMMAND.match(line)
        if match:
            yield match[1].split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    for words in commands_in(read(page)):
        context = click.Context(main)
        command = main.get_command(context, words[0])
        assert command is not None, words
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.get_command(context, words[1])
            assert command is not None, words
        known = {name for parameter in command.params for name in parameter.opts}
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known, words


def test_every_command_is_in_the_readme() -> None:
    assert {words[0] for words in commands_in(read(README))} == set(main.list_commands(click.Context(main)))


def test_every_page_speaks_of_variables_that_exist() -> None:
    in_code = {name for path in SOURCES for name in VARIABLE.findall(read(path))}
    in_pages = {name for page in PAGES for name in VARIABLE.findall(read(page))}
    assert in_pages == in_code


def test_the_readme_lists_what_can_be_imported() -> None:
    table = re.search(r"^\| function \| what it does \|\n.*?\n\n", read(README), re.MULTILINE | re.DOTALL)
    assert table is not None
    for row in table[0].splitlines()[2:]:
        for cell in IN_LINE.findall(row.split(" | ")[0]):
            owner = zrpc.RRef if cell.startswith(".") else zrpc
            for part in cell.lstrip(".").partition("(")[0].split("."):
                owner = getattr(owner, part)


# ------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("tool", ["draw_messages", "draw_reference"])
def test_tables_are_drawn_from_the_code(tool: str) -> None:
    names = runpy.run_path(str(ROOT / "docs" / "tools" / f"{tool}.py"))
    page = read(names["PAGE"])
    assert names["redraw"](page) == page, f"run docs/tools/{tool}.py"


def test_the_drawing_says_what_is_not_described() -> None:
    names = runpy.run_path(str(ROOT / "docs" / "tools" / "draw_messages.py"))
    assert set(names["KINDS"]) == set(names["Kind"])
    assert set(names["CODECS"]) == set(names["Codec"])
    errors = runpy.run_path(str(ROOT / "docs" / "tools" / "draw_reference.py"))
    assert [name for name in errors["REMEDIES"] if not hasattr(zrpc.errors, name)] == []


def test_the_layers_are_those_that_imports_are_held_to() -> None:
    page = read(ROOT / "docs" / "architecture.md")
    table = re.search(r"^\| layer \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = [row.split(" | ")[0] for row in table[0].splitlines()[2:] if row]
    drawn = [{name if name == "zrpc" else f"zrpc.{name}" for name in IN_LINE.findall(row)} for row in rows]
    assert drawn == [set(row) for row in LAYERS]


def test_figures_in_the_text_are_those_of_the_code() -> None:
    broker = RegistryOptions()
    figures = {
        "architecture.md": (
            f"looks every {executor.TICK * 1e3:g} ms",
            f"after {executor.TICK * 1e3:g} to {2 * executor.TICK * 1e3:g} ms",
            f"take over {executor.SLOW * 1e3:g} ms",
            f"up to {peers.IDLE_LANES} of which are kept",
            f"body of up to {envelope.INLINE_BODY_BYTES >> 10} KiB and buffers of up to "
            f"{envelope.INLINE_BUFFER_BYTES >> 10} KiB",
            f"a beat each {broker.heartbeat_interval:g} s",
            f"no beat for {broker.silence_timeout:g} s",
            f"nothing was heard for {broker.loss_grace:g} s",
            f"collected for {broker.flush_interval * 1e3:g} ms",
        ),
        "operations.md": (
            f"are named each {supervisor.NAG_SECONDS:g} s",
            f"its last {printer.TAIL_LINES} lines",
            f"logs of the last {rundir.KEPT} clusters",
        ),
        "README.md": (f"the default of {AgentOptions().rpc_timeout:g}",),
    }
    text_of = {page.name: " ".join(read(page).split()) for page in PAGES}
    assert [said for page, all_said in figures.items() for said in all_said if said not in text_of[page]] == []


# ------------------------------------------------------------------------------------------- what runs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages_compiles(page: Path) -> None:
    for text in blocks(read(page), "python"):
        compile(text, page.name, "exec", dont_inherit=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_in_pages_are_good(page: Path) -> None:
    for text in blocks(read(page), "yaml"):
        parse_config(text if "roles:" in text else f"{text}roles: {{worker: }}\n", page.name)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_examples_for_tests_run(number: int) -> None:
    exec(compile(blocks(read(ROOT / "docs" / "testing.md"), "python")[number], "testing.md", "exec"), {})


def environment(folder: Path) -> dict[str, str]:
    """That of a user who has set nothing, and whose run directories are in `folder`."""
    runtime = folder / "runtime"
    runtime.mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZRPC_")}
    return {**inherited, "XDG_RUNTIME_DIR": str(runtime)}


def zrpc_command(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zrpc.cli.main", *arguments],
        cwd=folder,
        env={**environment(folder), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def serving(folder: Path, text: str, *arguments: str, **variables: str) -> Iterator[str]:
    """A command that goes on; gives the line that shows that it has begun."""
    with zrpc_command(folder, *arguments, **variables) as process:
        try:
            assert process.stdout is not None
            yield next(line for line in process.stdout if text in line)
        finally:
            process.terminate()


def lines_of_the_job(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.startswith("job ")]


@pytest.mark.integration
def test_the_example_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    text = read(README)
    (tmp_path / "hello.yaml").write_text(blocks(text, "yaml")[0])
    (tmp_path / "hello.py").write_text(blocks(text, "python")[0])
    (said,) = (body for body in blocks(text, "") if body.startswith("$ zrpc launch hello.yaml"))
    with zrpc_command(tmp_path, "launch", "hello.yaml") as process:
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert lines_of_the_job(output) == lines_of_the_job(said)
    assert len(lines_of_the_job(said)) == 4


@pytest.mark.integration
def test_the_steps_by_hand_work_on_an_address_of_choice(tmp_path: Path) -> None:
    client = blocks(read(README), "python")[1]
    broker = ("broker", "--bind", "tcp://127.0.0.1:0", "--new-key", "cluster.key")
    with serving(tmp_path, "broker of cluster", *broker) as line:
        address = line.split()[-1]
        at = ("--broker", address, "--key-file", "cluster.key")
        bound = {"ZRPC_OPTIONS": '{"bind": "tcp://127.0.0.2:0"}'}
        (tmp_path / "client.py").write_text(client.replace("tcp://127.0.0.1:5555", address))
        with serving(tmp_path, "worker worker-0 has joined", "worker", "worker-0", *at, **bound):
            done = subprocess.run(
                [sys.executable, "client.py"],
                cwd=tmp_path,
                env=environment(tmp_path),
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (done.returncode, done.stdout) == (0, "tensor([2., 2.])\n"), done.stderr
            with zrpc_command(tmp_path, "status", *at) as process:
                shown, _ = process.communicate(timeout=60)
            assert "tcp://127.0.0.2:" in shown
