"""Errors that are raised more than once."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import pytest

from zrpc.errors import CallTimeout, NameTaken, NotImportable, RemoteFault, WorkerLost
from zrpc.runtime.raising import emptied, fresh, kept


class Picky(Exception):
    """Wants other arguments than it keeps."""

    def __init__(self, *, why: str) -> None:
        super().__init__(f"because of {why}")
        self.why = why


class Stubborn(Exception):
    """Does not let itself be copied."""

    def __init__(self) -> None:
        super().__init__("is here")
        self.since = "always"

    def __setstate__(self, _state: Any) -> None:
        raise TypeError("not with me")


ERRORS = [
    ValueError("a", 1),
    KeyError("key"),
    OSError(2, "No such file", "name"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ImportError("no", name="module", path="/path"),
    Picky(why="that"),
    CallTimeout("b", "f", 0.5, "state"),
    WorkerLost("b", "killed", "calling f"),
    NameTaken("w", "process 1"),
    NotImportable("m", "f", "not there"),
    RemoteFault("text", "m.E", "b", "trace"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_copy_is_as_the_error_was(error: BaseException) -> None:
    error.__cause__ = RuntimeError("cause")
    copy = fresh(error)
    assert copy is not error
    assert (type(copy), str(copy), repr(copy), vars(copy)) == (type(error), str(error), repr(error), vars(error))
    assert (copy.__cause__, copy.__traceback__) == (error.__cause__, None)
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)
    assert getattr(copy, "path", None) == getattr(error, "path", None)
    with pytest.raises(type(error)):
        raise copy
    assert error.__traceback__ is None


def test_what_cannot_be_copied_is_raised_itself() -> None:
    error = Stubborn()
    assert fresh(error) is error


def fail(held: object) -> None:
    raise ValueError("on purpose")


def caught(held: object) -> ValueError:
    try:
        fail(held)
    except ValueError as error:
        return error
    raise AssertionError


def test_what_is_kept_holds_nothing_and_can_say_where_it_was_raised() -> None:
    held = object()
    before = sys.getrefcount(held)
    error = kept(caught(held), says_where=True)
    assert error.__traceback__ is None
    assert sys.getrefcount(held) == before
    said = "".join(traceback.format_exception(error))
    assert ("in fail" in said) == (sys.version_info >= (3, 11))
    assert not hasattr(kept(caught(held)), "__notes__")


def test_what_is_emptied_has_its_traceback_and_not_what_the_frames_held() -> None:
    held = object()
    before = sys.getrefcount(held)
    error = emptied(caught(held))
    assert "in fail" in "".join(traceback.format_exception(error))
    assert sys.getrefcount(held) == before
