"""What the broker remembers of what has happened."""

from __future__ import annotations

import pytest

from zrpc.errors import NameTaken, StaleIncarnation
from zrpc.protocol.chronicle import MAX_ANSWER, Chronicle
from zrpc.protocol.effects import (
    BrokerLost,
    MemberDraining,
    MemberGone,
    MemberUp,
    News,
    PeerRefused,
    ScaleRequested,
    StopRequested,
)
from zrpc.wire.messages import Member

MEMBER = Member("a", 3, 17, 2, "memory://a", "shard", "up", 4711, "here")


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        (MemberUp(MEMBER), ("joined", "a", "")),
        (MemberDraining(MEMBER), ("draining", "a", "")),
        (MemberGone(MEMBER, "enough", "left"), ("left", "a", "enough")),
        (MemberGone(MEMBER, "was killed by SIGKILL"), ("died", "a", "was killed by SIGKILL")),
        (StopRequested("enough"), ("stopping", "everybody", "enough")),
        (StopRequested("enough", ("a", "b")), ("stopping", "a, b", "enough")),
        (ScaleRequested("shard", 4), ("scaling", "shard", "to 4")),
        (PeerRefused("a", StaleIncarnation("over")), ("fenced", "a", "over")),
        (PeerRefused("a", NameTaken("a")), ("refused", "a", str(NameTaken("a")))),
    ],
)
def test_what_is_noted(news: News, expected: tuple[str, str, str]) -> None:
    chronicle = Chronicle()
    chronicle.note_news(12.5, news)
    (entry,) = chronicle.since(0)
    assert (entry["kind"], entry["name"], entry["why"]) == expected
    assert (entry["number"], entry["at"], entry["count"]) == (1, 12.5, 1)


def test_members_are_described_and_other_news_is_nobodys_business() -> None:
    chronicle = Chronicle()
    chronicle.note_news(1.0, BrokerLost("?"))
    chronicle.note_news(1.0, MemberUp(MEMBER))
    (entry,) = chronicle.since(0)
    assert {key: entry[key] for key in ("id", "role", "life", "pid", "host")} == {
        "id": 3,
        "role": "shard",
        "life": 2,
        "pid": 4711,
        "host": "here",
    }


def test_the_oldest_go_and_numbers_go_on() -> None:
    chronicle = Chronicle(kept=3)
    for number in range(5):
        chronicle.note(float(number), "refused", f"w{number}")
    assert [entry["number"] for entry in chronicle.since(0)] == [3, 4, 5]
    assert [entry["name"] for entry in chronicle.since(4)] == ["w4"]
    assert chronicle.since(5) == []


def test_a_flood_of_one_thing_is_one_entry_which_is_told_again_as_it_grows() -> None:
    chronicle = Chronicle()
    chronicle.note(1.0, "died", "a", "why")
    for at in range(1000):
        chronicle.note(float(at), "refused", "b", "it is taken")
    assert len(chronicle) == 2
    assert [(entry["kind"], entry["count"]) for entry in chronicle.since(0)] == [("died", 1), ("refused", 1000)]
    (grown,) = chronicle.since(2)
    chronicle.note(1001.0, "refused", "b", "it is taken")
    assert (grown["count"], chronicle.since(1001)[0]["count"]) == (1000, 1001)


def test_an_answer_has_the_newest() -> None:
    chronicle = Chronicle()
    for number in range(MAX_ANSWER + 10):
        chronicle.note(0.0, "left", f"w{number}")
    assert [entry["name"] for entry in chronicle.since(0)][0 :: MAX_ANSWER - 1] == ["w10", f"w{MAX_ANSWER + 9}"]
