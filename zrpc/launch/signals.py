"""Signals that end the launcher, turned into events.

One rule: a handler only tells; it raises nothing, so no step of starting or stopping is ever cut in two.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_told(tell: Callable[[int], None]) -> Iterator[None]:
    """Call `tell(signal number)` for each ending signal meanwhile. Python allows it in the main thread only; in another
    one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, lambda number, _: tell(number)) for signum in ENDING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
