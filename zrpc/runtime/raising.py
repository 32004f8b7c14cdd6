"""Raising one error more than once, and in more than one place.

One rule: an error that is kept is never raised itself, but a copy of it. What is raised remembers every frame that it
passes (its traceback), and these whatever they held: the future, the reference or the call that keeps the error. Through
torch's futures that is a circle that no garbage collection finds.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any, TypeVar

_IN_PYTHON = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: set for classes that are written in Python."""
E = TypeVar("E", bound=BaseException)


def kept(error: E, says_where: bool = False) -> E:
    """An error that was just caught, made fit to be kept: without its traceback, whose frames lead to all that they held.

    `says_where`: it has the text of that traceback as a note (from Python 3.11 on), for whoever prints it.
    """
    if says_where and sys.version_info >= (3, 11):
        error.add_note("First raised here:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    return error.with_traceback(None)


def emptied(error: E) -> E:
    """An error that keeps its traceback, for the text of it, but not what the finished frames held."""
    traceback.clear_frames(error.__traceback__)
    return error


def fresh(error: BaseException) -> BaseException:
    """A copy of an error, to be raised: as it was when it was kept, with its cause."""
    try:
        copy = _copied(error)
    except Exception:  # a class of somebody's that is made in its own way: better the error itself than another one
        return error
    copy.__cause__ = error.__cause__
    copy.__suppress_context__ = error.__suppress_context__
    return copy.with_traceback(error.__traceback__)


def _copied(error: BaseException) -> BaseException:
    # The own __init__ of the class may want other arguments; the built-in class that it is laid out as takes those kept.
    base: Any = type(error)
    while base.__flags__ & _IN_PYTHON:
        base = base.__base__
    _, args, *state = base.__reduce__(error)
    copy: Any = base.__new__(type(error), *args)
    base.__init__(copy, *args)
    if state and state[0]:
        copy.__setstate__(state[0])
    copy.args = error.args
    return copy  # type: ignore[no-any-return]
