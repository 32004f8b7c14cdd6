"""Groups of parameters, and which worker has which of them.

One rule: nothing here calls anybody. A parameter's index counts through all groups in the order they were given in, as in
the state of a `torch.optim.Optimizer`, so that what is put together here is what such an optimizer writes and reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zrpc.ids import WorkerInfo
from zrpc.rref import RRef

Group = dict[str, Any]
"""Options by name; "params" has RRefs, "param_names" their names if they were given with them."""
LOCAL_KEYS = ("params", "param_names")
"""What of a group is not an option."""


def make_groups(params: Any) -> list[Group]:
    """The groups of what an optimizer is given: RRefs, names with RRefs, or dicts with "params" and options.

    Raises `TypeError` for anything else.
    """
    if isinstance(params, (torch.Tensor, RRef)):
        raise TypeError(
            f"params argument given to the optimizer should be an iterable of RRefs or dicts, but got {type(params)}"
        )
    items: list[Any] = list(params)
    if items and all(isinstance(item, dict) for item in items):
        return [make_group(item) for item in items]
    return [make_group({"params": items})] if items else []


def make_group(given: Mapping[str, Any]) -> Group:
    """One group, its parameters checked."""
    group = dict(given)
    params = group["params"]
    items: list[Any] = [params] if isinstance(params, RRef) else list(params)
    if items and all(isinstance(item, tuple) and len(item) == 2 for item in items):
        group["param_names"] = [name for name, _ in items]
        items = [rref for _, rref in items]
    for item in items:
        if not isinstance(item, RRef):
            raise TypeError(
                f"DistributedOptimizer takes RRefs to parameters, but one of the params is {type(item)}. "
                "RRef(parameter) makes one for a parameter of this worker"
            )
    group["params"] = items
    return group


def options_of(group: Mapping[str, Any]) -> Group:
    """What a group has beside its parameters."""
    return {key: value for key, value in group.items() if key not in LOCAL_KEYS}


@dataclass
class Share:
    """What one worker has of the groups."""

    owner: WorkerInfo
    numbers: list[int] = field(default_factory=list)
    """The groups that it has parameters of; its own groups are these, in this order."""
    indexes: list[int] = field(default_factory=list)
    """For each of its parameters, in its own order, the index among all."""
    groups: list[Group] = field(default_factory=list)

    def extend(self, other: Share) -> None:
        """Have the worker's share of a further group too."""
        self.numbers += other.numbers
        self.indexes += other.indexes
        self.groups += other.groups


def share_out(groups: Sequence[Group], first_group: int = 0, first_index: int = 0) -> list[Share]:
    """The share of each worker, by who comes first. Groups and parameters are counted from these numbers on."""
    shares: dict[WorkerInfo, Share] = {}
    index = first_index
    for number, group in enumerate(groups, first_group):
        for rref in group["params"]:
            share = shares.setdefault(rref.owner(), Share(rref.owner()))
            if not share.numbers or share.numbers[-1] != number:
                share.numbers.append(number)
                share.groups.append({**options_of(group), "params": []})
            share.groups[-1]["params"].append(rref)
            share.indexes.append(index)
            index += 1
    return list(shares.values())


# ---------------------------------------------------------------------------------------------- options that change


def snapshot(group: Mapping[str, Any]) -> Group:
    """The options as they are now; a scheduler may change a tensor in place."""
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for key, value in options_of(group).items()
    }


def changed_options(group: Mapping[str, Any], before: Mapping[str, Any]) -> Group:
    """The options of a group that are not as they were in a snapshot."""
    return {
        key: value for key, value in options_of(group).items() if key not in before or not is_same(value, before[key])
    }


def is_same(one: Any, other: Any) -> bool:
    """Whether two options are equal; tensors by their values."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    return one is other or bool(type(one) is type(other) and one == other)


# ---------------------------------------------------------------------------------------------- states


def join_states(groups: Sequence[Group], parts: Iterable[tuple[Share, Mapping[str, Any]]]) -> dict[str, Any]:
    """The state of all, as a `torch.optim.Optimizer` over all the parameters would have it, of those of the workers."""
    state: dict[Any, Any] = {}
    for share, part in parts:
        for key, value in part["state"].items():
            state[share.indexes[key] if isinstance(key, int) else key] = value
    ordered = dict(sorted(state.items(), key=lambda item: (not isinstance(item[0], int), item[0])))
    joined: list[Group] = []
    index = 0
    for group in groups:
        count = len(group["params"])
        entry = {key: value for key, value in group.items() if key != "params"}
        joined.append({**entry, "params": list(range(index, index + count))})
        index += count
    return {"state": ordered, "param_groups": joined}


def check_fits(groups: Sequence[Group], state: Mapping[str, Any]) -> None:
    """Raise `ValueError`, with torch's texts, if a state is not one of such groups."""
    saved = state["param_groups"]
    if len(groups) != len(saved):
        raise ValueError("loaded state dict has a different number of parameter groups")
    if any(len(group["params"]) != len(found["params"]) for group, found in zip(groups, saved, strict=True)):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )


def state_for(share: Share, state: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's part of a state of all, as its own optimizer takes it."""
    saved = [key for group in state["param_groups"] for key in group["params"]]
    mine = {index: place for place, index in enumerate(share.indexes)}
    group_of = {index: number for number, group in enumerate(state["param_groups"]) for index in _range(state, number)}
    groups = [{**options_of(state["param_groups"][number]), "params": []} for number in share.numbers]
    for index in share.indexes:
        groups[share.numbers.index(group_of[index])]["params"].append(mine[index])
    found: dict[Any, Any] = {}
    for index, place in mine.items():
        if saved[index] in state["state"]:
            found[place] = state["state"][saved[index]]
    common = {key: value for key, value in state["state"].items() if key not in set(saved)}
    return {"state": {**found, **common}, "param_groups": groups}


def _range(state: Mapping[str, Any], number: int) -> range:
    """The indexes of the parameters of a group."""
    sizes = [len(group["params"]) for group in state["param_groups"]]
    return range(sum(sizes[:number]), sum(sizes[: number + 1]))
