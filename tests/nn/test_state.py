"""States that travel in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from zrpc.errors import RRefMisuse
from zrpc.nn.state import Incoming, StateAtOwner, load_state, parts_of, split, stream_state
from zrpc.rref import RRef
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster


class Model(nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.big = nn.Parameter(torch.full((10,), fill))
        self.register_buffer("count", torch.tensor(int(fill)))
        self.small = nn.Parameter(torch.full((1,), fill))

    def get_extra_state(self) -> dict[str, str]:
        return {"note": "extra"}

    def set_extra_state(self, state: Any) -> None:
        self.note = state["note"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b"]) as running:
        install_agent(running["a"].agent)
        try:
            yield running
        finally:
            remove_agent(running["a"].agent)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([], []),
        ([3, 3, 3], [[0, 1], [2]]),
        ([100], [[0]]),
        ([1, 100, 1], [[0], [1], [2]]),
        ([0, 0, 7, 0], [[0, 1, 2, 3]]),
    ],
)
def test_parts(sizes: list[int], wanted: list[list[int]]) -> None:
    named = [(str(index), size) for index, size in enumerate(sizes)]
    assert split(named, 7) == [[str(index) for index in part] for part in wanted]
    tensors = [(name, torch.zeros(size, dtype=torch.uint8)) for name, size in named]
    assert [list(part) for part in parts_of(tensors, 7)] == [[str(index) for index in part] for part in wanted]


@pytest.mark.parametrize("part_bytes", [1, 45, 1 << 20])
def test_there_and_back(cluster: LocalCluster, part_bytes: int) -> None:
    model = cluster["a"].remote("b", Model, (3.0,))
    items = list(stream_state(model, part_bytes))
    assert [name for name, _ in items] == ["big", "small", "count", "_extra_state"]
    found = dict(items)
    assert torch.equal(found["big"], torch.full((10,), 3.0))
    assert found["_extra_state"] == {"note": "extra"}
    state = Model(7.0).state_dict()
    assert load_state(model, iter(state.items()), part_bytes=part_bytes) == ([], [])
    assert dict(stream_state(model))["count"] == 7


def test_what_is_read_is_a_copy(cluster: LocalCluster) -> None:
    model = Model(1.0)
    state = StateAtOwner(RRef(model))
    (copied,) = state.read(["big"])
    copied.fill_(9.0)
    assert model.big[0] == 1.0
    assert dict(state.sizes()) == {"big": 40, "small": 4, "count": 8, "_extra_state": 0}


def test_a_state_that_breaks_off_changes_nothing(cluster: LocalCluster) -> None:
    model = Model(1.0)

    def broken() -> Iterator[tuple[str, Any]]:
        yield "big", torch.zeros(10)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        load_state(RRef(model), broken(), part_bytes=1)
    incoming = Incoming(RRef(model))
    incoming.add({"big": torch.zeros(10)})
    with pytest.raises(RuntimeError, match="Missing key"):
        incoming.finish(strict=True)
    assert incoming.finish(strict=False) == (["small", "count", "_extra_state"], [])
    assert model.big[0] == 0.0


def test_a_state_is_opened_at_the_owner_only(cluster: LocalCluster) -> None:
    with pytest.raises(RRefMisuse, match="Call it on owner"):
        StateAtOwner(cluster["a"].remote("b", Model, (1.0,)))
