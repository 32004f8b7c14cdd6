from __future__ import annotations

import os
import signal
import threading

from zrpc.launch.signals import ENDING, signals_told


def test_signals_are_told_and_handlers_come_back() -> None:
    before = [signal.getsignal(signum) for signum in ENDING]
    told: list[int] = []
    with signals_told(told.append):
        for signum in ENDING:
            os.kill(os.getpid(), signum)
    assert told == list(ENDING)
    assert [signal.getsignal(signum) for signum in ENDING] == before


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with signals_told(lambda signum: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert seen == [before]
