"""`DistributedOptimizer`: one optimizer for parameters on many workers.

One rule: each worker has an optimizer for its own parameters; this one has their groups and options, and tells them of
changes with the next step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from zrpc.api import rpc_async
from zrpc.autograd import _retrieve_context
from zrpc.errors import RRefMisuse
from zrpc.optim import local_optimizers as local
from zrpc.optim.param_groups import (
    Group,
    Share,
    changed_options,
    check_fits,
    join_states,
    make_group,
    make_groups,
    options_of,
    share_out,
    snapshot,
    state_for,
)
from zrpc.rref import RRef
from zrpc.runtime.futures import Future


class DistributedOptimizer(torch.optim.Optimizer):
    """An optimizer over RRefs to parameters: each worker takes the steps for its own, with the gradients of a context.

    Args:
        optimizer_class: a class of `torch.optim` or below `torch.optim.Optimizer`, except `LBFGS`; or a functional
            optimizer, whose `step` takes gradients. It is made on each worker that has parameters.
        params_rref: RRefs to parameters, names with RRefs, or, as in `torch.optim`, dicts with "params" and the options
            of a group.
        args, kwargs: given to `optimizer_class`.
        hogwild: let other trainers' graphs use parameters that a step has changed meanwhile. Without it, torch's rule
            holds: a backward pass raises when a parameter that it needs has changed since the forward pass.

    It is a `torch.optim.Optimizer`: `param_groups` has the options, learning-rate schedulers are made over it as they are,
    and `state_dict()` is what an optimizer of that class has that holds all the parameters in one process.

    Several trainers may each have one over the same parameters. A worker takes one step at a time, and each trainer's has
    a state (momentum and so on) of its own. Between trainers, and between workers, there is no order.

    Raises what `optimizer_class` raises, `TypeError` for what is no RRef.
    """

    def __init__(
        self, optimizer_class: Any, params_rref: Any, *args: Any, hogwild: bool = False, **kwargs: Any
    ) -> None:
        if isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the model several times in a step, which a step on other workers cannot do: "
                "use another class of torch.optim"
            )
        self._made_with = (optimizer_class, args, kwargs, hogwild)
        self._shares: list[Share] = []
        self.remote_optimizers: list[RRef[Any]] = []
        super().__setstate__({"defaults": dict(kwargs), "state": defaultdict(dict), "param_groups": []})
        groups = make_groups(params_rref)
        self.param_groups: list[Group] = groups
        shares = share_out(groups)
        self._take_options(shares, self._make(shares))
        self._sent = [snapshot(group) for group in groups]

    @property
    def is_functional_optim(self) -> bool:
        """Whether the workers have functional optimizers."""
        cls = self._made_with[0]
        return not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer))

    def _make(self, shares: Sequence[Share]) -> list[list[Group]]:
        """Make the optimizers of these workers; returns the options of their groups."""
        cls, args, kwargs, hogwild = self._made_with
        made = wait_for_all(
            [
                rpc_async(share.owner, local.new_local_optimizer, (cls, share.groups, args, kwargs, hogwild))
                for share in shares
            ]
        )
        self._shares.extend(shares)
        for rref, _, defaults in made:
            self.remote_optimizers.append(rref)
            self.defaults.update(defaults)
        return [options for _, options, _ in made]

    def _take_options(self, shares: Sequence[Share], found: Sequence[Sequence[Group]]) -> None:
        """The workers' optimizers have filled in defaults."""
        for share, groups in zip(shares, found, strict=True):
            for number, options in zip(share.numbers, groups, strict=True):
                self.param_groups[number].update(options)

    # ------------------------------------------------------------------------------------ steps

    def step(self, context_id: int) -> None:  # type: ignore[override]
        """Take a step on every worker, with the gradients that this distributed autograd context has there.

        Parameters without a gradient in it stay as they are. Returns when all have ended. Raises `AutogradMisuse` when
        there is no such context, or the first error of a worker; the others may have taken their step then.
        """
        _retrieve_context(context_id)
        changes = [changed_options(group, sent) for group, sent in zip(self.param_groups, self._sent, strict=True)]
        sent = [snapshot(group) for group in self.param_groups] if any(changes) else self._sent
        wait_for_all(
            [
                rpc_async(rref.owner(), local.step, (rref, context_id, _changes_for(share, changes)))
                for share, rref in zip(self._shares, self.remote_optimizers, strict=True)
            ]
        )
        self._sent = sent

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: gradients belong to contexts, and a new context has none."""

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group: a dict with "params", RRefs, and options. If that fails, make another optimizer."""
        group = make_group(param_group)
        first = sum(len(known["params"]) for known in self.param_groups)
        places = {share.owner: place for place, share in enumerate(self._shares)}
        shares = share_out([group], len(self.param_groups), first)
        known = [share for share in shares if share.owner in places]
        new = [share for share in shares if share.owner not in places]
        found = wait_for_all(
            [
                rpc_async(share.owner, local.add_group, (self.remote_optimizers[places[share.owner]], share.groups[0]))
                for share in known
            ]
        )
        made = self._make(new)
        for share in known:
            self._shares[places[share.owner]].extend(share)
        self.param_groups.append(group)
        self._take_options([*known, *new], [*([options] for options in found), *made])
        self._sent.append(snapshot(group))

    # ------------------------------------------------------------------------------------ states

    def state_dict(self) -> dict[str, Any]:
        """The state, on the CPU, as an optimizer of the class has it that holds all the parameters, in their order.

        Such an optimizer, in one process, can load it; so can this one.
        """
        found = wait_for_all([rpc_async(rref.owner(), local.read_state, (rref,)) for rref in self.remote_optimizers])
        return join_states(self.param_groups, zip(self._shares, found, strict=True))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state that `state_dict()` of this, or of an optimizer in one process, has given.

        Raises `ValueError` if it does not fit the groups; nothing is changed then.
        """
        check_fits(self.param_groups, state_dict)
        calls = zip(self._shares, self.remote_optimizers, strict=True)
        found = wait_for_all(
            [rpc_async(rref.owner(), local.load_state, (rref, state_for(share, state_dict))) for share, rref in calls]
        )
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for key in options_of(group):
                del group[key]
            group.update(options_of(saved))
        self._take_options(self._shares, found)
        self._sent = [snapshot(group) for group in self.param_groups]

    def __getstate__(self) -> NoReturn:
        raise RRefMisuse(
            "a DistributedOptimizer cannot be pickled or sent: save its state_dict(), or make another one of the RRefs"
        )


def _changes_for(share: Share, changes: Sequence[Group]) -> dict[int, Group]:
    """What has changed in the groups of a worker, by its own numbers of them."""
    return {place: changes[number] for place, number in enumerate(share.numbers) if changes[number]}


def wait_for_all(futures: Sequence[Future[Any]]) -> list[Any]:
    """Wait until all have ended; their values. Raises the first error among them."""
    results: list[Any] = []
    first: BaseException | None = None
    for future in futures:
        try:
            results.append(future.wait())
        except Exception as error:
            first = first or error
    if first is not None:
        raise first
    return results
