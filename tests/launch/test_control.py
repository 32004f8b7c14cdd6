from __future__ import annotations

import socket

import pytest

from zrpc.errors import ConfigError
from zrpc.launch.control import ORDER_VARIABLE, Control, ProcessOrder


def test_what_one_side_says_the_other_hears_until_it_is_gone() -> None:
    ours, theirs = map(Control, socket.socketpair())
    assert ours.send(ready="tcp://127.0.0.1:5")
    ours.tell(joined="a\nb")
    ours.close()
    assert list(theirs.lines()) == [{"ready": "tcp://127.0.0.1:5"}, {"joined": "a\nb"}]
    assert not theirs.send(stop=True)
    theirs.close()


def test_an_order_travels_in_the_environment() -> None:
    order = ProcessOrder(7, "c", "tcp://127.0.0.1:0", ("a", "b"), ("shard",), 0.1, 1.0, 5.0, True)
    assert ProcessOrder.from_environment({ORDER_VARIABLE: order.to_json()}) == order


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"expected": [], "roles": [], "other": 1}'])
def test_no_order_is_an_error(text: str | None) -> None:
    with pytest.raises(ConfigError, match="expected a launcher's order"):
        ProcessOrder.from_environment({} if text is None else {ORDER_VARIABLE: text})
