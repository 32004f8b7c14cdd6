from __future__ import annotations

import pytest

from zrpc.errors import (
    BrokerUnreachable,
    CallTimeout,
    ConfigError,
    KeyFileError,
    NameTaken,
    RemoteFault,
    UnknownFunction,
    UnknownWorker,
    VersionMismatch,
    ZrpcError,
)
from zrpc.launch.exits import MEANINGS, describe_exit, epilog, exit_code_for


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x", ["y"]), 2),
        (KeyFileError("x", "y", "z"), 2),
        (BrokerUnreachable("x", 1), 4),
        (UnknownWorker("x", []), 4),
        (CallTimeout("x", "f", 1), 4),
        (VersionMismatch(2, 1), 4),
        (UnknownFunction("x"), 5),
        (NameTaken("x"), 5),
        (RemoteFault("x"), 5),
    ],
)
def test_codes(error: ZrpcError, code: int) -> None:
    assert exit_code_for(error) == code


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with exit code 0"),
        (-9, "was killed by SIGKILL"),
        (-15, "was killed by SIGTERM"),
        (-200, "was killed by signal 200"),
    ],
)
def test_ends_in_words(code: int, text: str) -> None:
    assert describe_exit(code) == text


def test_every_code_is_documented() -> None:
    text = epilog()
    assert all(meaning in text for meaning in MEANINGS.values())
