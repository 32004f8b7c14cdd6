"""Which worker has what of the groups, and states that are taken apart and put together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zrpc.optim.param_groups import (
    changed_options,
    check_fits,
    is_same,
    join_states,
    make_groups,
    share_out,
    snapshot,
    state_for,
)
from zrpc.rref import RRef
from zrpc.testing import LocalCluster

OWNERS = ("a", "b", "c")


@pytest.fixture(scope="module")
def rrefs() -> Iterator[dict[str, RRef[Any]]]:
    with LocalCluster(OWNERS) as cluster:
        found = {name: cluster["a"].remote(name, float, (1,)) for name in OWNERS}
        yield found
        found.clear()


def test_groups_of_all_kinds(rrefs: dict[str, RRef[Any]]) -> None:
    a, b = rrefs["a"], rrefs["b"]
    assert make_groups(iter([a, b])) == [{"params": [a, b]}]
    assert make_groups([("x", a)]) == [{"params": [a], "param_names": ["x"]}]
    assert make_groups([{"params": a, "lr": 1}, {"params": [b]}]) == [{"params": [a], "lr": 1}, {"params": [b]}]
    assert make_groups([]) == []


def test_who_has_what(rrefs: dict[str, RRef[Any]]) -> None:
    groups = make_groups(
        [{"params": [rrefs[name] for name in names], "lr": len(names)} for names in ("ab", "c", "bab")]
    )
    first, second, third = share_out(groups)
    assert (first.owner.name, first.numbers, first.indexes) == ("a", [0, 2], [0, 4])
    assert (second.owner.name, second.numbers, second.indexes) == ("b", [0, 2], [1, 3, 5])
    assert (third.owner.name, third.numbers, third.indexes) == ("c", [1], [2])
    assert [(group["lr"], len(group["params"])) for group in second.groups] == [(2, 1), (3, 2)]


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_states_go_apart_and_together(names: list[str], data: Any) -> None:
    with_owner = [FakeRRef(name) for group in names for name in group]
    items = iter(with_owner)
    groups = [{"params": [next(items) for _ in group], "lr": number} for number, group in enumerate(names)]
    count = len(with_owner)
    has_state = data.draw(st.sets(st.integers(0, count - 1)))
    state = {
        "state": {index: {"step": index} for index in sorted(has_state)},
        "param_groups": [
            {"lr": group["lr"], "params": [index for index, rref in enumerate(with_owner) if rref in group["params"]]}
            for group in groups
        ],
    }
    check_fits(groups, state)
    shares = share_out(groups)
    parts = [(share, state_for(share, state)) for share in shares]
    for share, part in parts:
        own = [place for group in part["param_groups"] for place in group["params"]]
        assert own == list(range(len(share.indexes)))
        assert [group["lr"] for group in part["param_groups"]] == share.numbers
    assert join_states(groups, parts) == state


class FakeRRef:
    """Has an owner, which is all that is asked of one here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def owner(self) -> Any:
        return self.name


def test_changes_are_found_also_in_place() -> None:
    group = {"params": [], "lr": torch.tensor(1.0), "betas": (0.9, 0.99), "foreach": None}
    before = snapshot(group)
    assert changed_options(group, before) == {}
    group["lr"].fill_(0.5)  # type: ignore[attr-defined]
    group["betas"] = (0.8, 0.99)
    group["initial_lr"] = 1.0
    assert changed_options(group, before) == {"lr": torch.tensor(0.5), "betas": (0.8, 0.99), "initial_lr": 1.0}
    assert not is_same(1, True)
    assert not is_same(torch.tensor(1.0), 1.0)
    assert is_same(torch.ones(2), torch.ones(2))
