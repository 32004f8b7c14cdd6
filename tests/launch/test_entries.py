from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zrpc.errors import ConfigError, DeadlineExceeded, NameTaken
from zrpc.launch.entries import SWITCH_INTERVAL, load_entry, load_modules, parse_arguments, run_program, wait_at_gate


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("no_such_module_here:main", "there is no module 'no_such_module_here': add its directory to python_path"),
        ("zrpc.no_such:main", "there is no module 'zrpc.no_such'"),
        ("json:no_such", "module json has no 'no_such'"),
        ("json:decoder.no_such", "module json has no 'decoder.no_such'"),
        ("json:__name__", "expected a function, found str"),
    ],
)
def test_bad_entries(entry: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"entry {entry}") as caught:
        load_entry(entry)
    assert caught.value.problems[0].startswith(why)


def test_good_entries() -> None:
    assert load_entry("json:dumps")([1]) == "[1]"
    assert load_entry("json:decoder.JSONDecoder").__name__ == "JSONDecoder"
    load_modules(["json.decoder"])


def test_a_module_that_imports_a_missing_one_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError):
        load_modules(["needs_more"])
    assert "needs_more" not in sys.modules


def test_arguments() -> None:
    assert parse_arguments('{"a": 1}') == {"a": 1}
    for text in ("", "[1]", "{"):
        with pytest.raises(ConfigError, match="expected a JSON object"):
            parse_arguments(text)


def test_the_gate_opens() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"go")
    environ = {"ZRPC_GATE": str(reader)}
    wait_at_gate(environ, 60)
    assert environ == {}
    os.close(writer)
    wait_at_gate({}, 60)


def test_the_gate_stays_closed() -> None:
    reader, writer = os.pipe()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        wait_at_gate({"ZRPC_GATE": str(reader)}, 0.01)
    os.close(writer)


def _refused() -> int:
    raise NameTaken("w")


def _broken() -> int:
    raise ValueError("of the user's own")


@pytest.fixture
def _switching() -> Iterator[None]:
    saved = sys.getswitchinterval()
    yield
    sys.setswitchinterval(saved)


@pytest.mark.usefixtures("_switching")
def test_threads_take_turns_more_often_than_by_default() -> None:
    sys.setswitchinterval(0.005)
    with pytest.raises(SystemExit):
        run_program(lambda: 0)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL, rel=0.01)


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize(("main", "code"), [(lambda: None, 0), (lambda: 4, 4), (_refused, 1), (_broken, 1)])
def test_exit_codes(main: object, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(main)  # type: ignore[arg-type]
    assert caught.value.code == code
    said = capsys.readouterr().err
    assert ("NameTaken: worker name 'w'" in said) == (main is _refused)
    assert ("Traceback" in said) == (main is _broken)
