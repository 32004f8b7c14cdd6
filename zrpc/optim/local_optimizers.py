"""The optimizer on a worker that has parameters.

One rule: a step uses the gradients of one context and no others, and leaves `.grad` as it was. Steps on a worker are made
one after the other, whoever asks for them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.jit._state import _get_script_class
from torch.utils._pytree import tree_map_only

from zrpc.autograd import get_gradients
from zrpc.optim.param_groups import Group, options_of
from zrpc.rref import RRef

# Several optimizers, each of another trainer, may have the same parameters here: one lock for all of them.
_stepping = threading.Lock()
# TorchScript does not compile in two threads at once.
_compiling = threading.Lock()


class LocalOptimizer(Protocol):
    """What `DistributedOptimizer` asks of a worker."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The options of a group that names none."""

    def options(self) -> list[Group]:
        """The options of each group, the defaults filled in."""

    def step(self, context_id: int, changes: Mapping[int, Group]) -> None:
        """Change options, by the number of the group, then take a step with the gradients of a context."""

    def add_group(self, group: Group) -> Group:
        """Add a group; returns its options, the defaults filled in."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's `state_dict()`, on the CPU."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state."""


class ClassOptimizer:
    """Works with an optimizer of `torch.optim`, or any other class below `torch.optim.Optimizer`."""

    def __init__(
        self, cls: Any, groups: Sequence[Group], args: Sequence[Any], kwargs: Mapping[str, Any], hogwild: bool
    ) -> None:
        self._optimizer = cls([_with_values(group) for group in groups], *args, **kwargs)
        self._hogwild = hogwild

    @property
    def defaults(self) -> dict[str, Any]:
        return dict(self._optimizer.defaults)

    def options(self) -> list[Group]:
        return [options_of(group) for group in self._optimizer.param_groups]

    def step(self, context_id: int, changes: Mapping[int, Group]) -> None:
        gradients = get_gradients(context_id)
        groups = self._optimizer.param_groups
        with _stepping:
            for number, options in changes.items():
                groups[number].update(options)
            params = [param for group in groups for param in group["params"]]
            saved = [param.grad for param in params]
            try:
                for param in params:
                    param.grad = gradients.get(param)
                with _same_versions(params) if self._hogwild else contextlib.nullcontext():
                    self._optimizer.step()
            finally:
                for param, grad in zip(params, saved, strict=True):
                    param.grad = grad

    def add_group(self, group: Group) -> Group:
        with _stepping:
            self._optimizer.add_param_group(_with_values(group))
            return options_of(self._optimizer.param_groups[-1])

    def state_dict(self) -> dict[str, Any]:
        with _stepping:
            return tree_map_only(Tensor, lambda tensor: tensor.to("cpu", copy=True), self._optimizer.state_dict())  # type: ignore[no-any-return]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with _stepping:
            self._optimizer.load_state_dict(state)


class _Compiled(nn.Module):
    """A functional optimizer as TorchScript takes it: in a module, with two functions."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.optimizer = optimizer

    def forward(self, gradients: list[Tensor | None]) -> None:
        self.optimizer.step(gradients)

    @torch.jit.export
    def set_option(self, name: str, value: float) -> None:
        self.optimizer.defaults[name] = value


class FunctionalOptimizer:
    """Works with a functional optimizer: a class whose `step` takes the gradients, as some of torch's are.

    If it is a TorchScript class, steps run without Python's lock. Its options are those in `defaults`, of one group.
    """

    def __init__(
        self, cls: Any, groups: Sequence[Group], args: Sequence[Any], kwargs: Mapping[str, Any], hogwild: bool
    ) -> None:
        if len(groups) != 1 or options_of(groups[0]):
            raise ValueError(
                f"{cls.__qualname__} is a functional optimizer: it has one group of parameters, without options"
            )
        self._name = cls.__qualname__
        self._params = _with_values(groups[0])["params"]
        self._hogwild = hogwild
        optimizer = cls(self._params, *args, **kwargs)
        self._options = dict(getattr(optimizer, "defaults", {}))
        made = _Compiled(optimizer)
        if _get_script_class(cls) is not None:  # type: ignore[no-untyped-call]
            with _compiling:
                self._optimizer: Any = torch.jit.script(made)
        else:
            self._optimizer = made

    @property
    def defaults(self) -> dict[str, Any]:
        return dict(self._options)

    def options(self) -> list[Group]:
        return [dict(self._options)]

    def step(self, context_id: int, changes: Mapping[int, Group]) -> None:
        gradients = get_gradients(context_id)
        with _stepping:
            for name, value in changes.get(0, {}).items():
                if name in self._options:  # others are the schedulers' own
                    self._optimizer.set_option(name, float(value))
            with _same_versions(self._params) if self._hogwild else contextlib.nullcontext():
                self._optimizer([gradients.get(param) for param in self._params])

    def add_group(self, group: Group) -> Group:
        raise ValueError(f"{self._name} is a functional optimizer: it has one group of parameters")

    def state_dict(self) -> dict[str, Any]:
        raise ValueError(
            f"{self._name} is a functional optimizer: its state cannot be read. Use the class of torch.optim"
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise ValueError(f"{self._name} is a functional optimizer: it takes no state. Use the class of torch.optim")


def _with_values(group: Group) -> Group:
    """A group as optimizers take it: the values in the place of the references."""
    return {**group, "params": [rref.local_value() for rref in group["params"]]}


@contextlib.contextmanager
def _same_versions(params: Sequence[Tensor]) -> Any:
    """Have autograd not notice that these tensors change."""
    with contextlib.ExitStack() as stack:
        for param in params:
            stack.enter_context(_unsafe_preserve_version_counter(param))
        yield


# ---------------------------------------------------------------------------------------------- called from elsewhere


def new_local_optimizer(
    cls: Any, groups: Sequence[Group], args: Sequence[Any], kwargs: Mapping[str, Any], hogwild: bool
) -> tuple[RRef[LocalOptimizer], list[Group], dict[str, Any]]:
    """Make an optimizer here; returns a reference to it, the options of its groups, and its defaults."""
    is_class = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    is_functional = not is_class and isinstance(cls, type) and callable(getattr(cls, "step", None))
    make = FunctionalOptimizer if is_functional else ClassOptimizer
    made: LocalOptimizer = make(cls, groups, args, kwargs, hogwild)
    return RRef(made), made.options(), made.defaults


def step(optimizer: RRef[LocalOptimizer], context_id: int, changes: Mapping[int, Group]) -> None:
    """`LocalOptimizer.step`."""
    optimizer.local_value().step(context_id, changes)


def add_group(optimizer: RRef[LocalOptimizer], group: Group) -> Group:
    """`LocalOptimizer.add_group`."""
    return optimizer.local_value().add_group(group)


def read_state(optimizer: RRef[LocalOptimizer]) -> dict[str, Any]:
    """`LocalOptimizer.state_dict`."""
    return optimizer.local_value().state_dict()


def load_state(optimizer: RRef[LocalOptimizer], state: dict[str, Any]) -> list[Group]:
    """`LocalOptimizer.load_state_dict`; returns the options of the groups."""
    local = optimizer.local_value()
    local.load_state_dict(state)
    return local.options()
