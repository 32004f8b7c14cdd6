"""DistributedOptimizer takes the steps that an optimizer in one process takes, with every optimizer and scheduler."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from training import Part, RemotePart, batch, loss_of, train_here, train_there

import zrpc
from zrpc import autograd
from zrpc.errors import AutogradMisuse, RRefMisuse
from zrpc.optim import DistributedOptimizer
from zrpc.rref import RRef
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster

LONG = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c", "d"]) as started:
        install_agent(started["a"].agent)
        try:
            yield started
        finally:
            remove_agent(started["a"].agent)


@pytest.fixture
def here() -> list[Part]:
    return [Part(1), Part(2)]


@pytest.fixture
def there(cluster: LocalCluster) -> list[RemotePart]:
    return [RemotePart("b", 1), RemotePart("c", 2)]


def parameters(parts: list[Part]) -> list[nn.Parameter]:
    return [parameter for part in parts for parameter in part.parameters()]


def rrefs(parts: list[RemotePart]) -> list[RRef[nn.Parameter]]:
    return [rref for part in parts for rref in part.params]


def assert_same(here: list[Part], there: list[RemotePart]) -> None:
    for mine, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.value(), mine.weight.detach(), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- every optimizer

SPARSE_OR_CLOSURE = {"Optimizer", "LBFGS", "SparseAdam"}
CLASSES = {
    name: cls
    for name, cls in vars(optim).items()
    if inspect.isclass(cls) and issubclass(cls, optim.Optimizer) and name not in SPARSE_OR_CLOSURE
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CLASSES),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True, "foreach": True}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "foreach": False}),
    ("AdamW", {"lr": torch.tensor(0.1)}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_steps_are_those_of_one_process(
    here: list[Part], there: list[RemotePart], name: str, options: dict[str, Any]
) -> None:
    before = there[0].value()
    train_here(CLASSES[name](parameters(here), **copy.deepcopy(options)), here, range(3))
    train_there(DistributedOptimizer(CLASSES[name], rrefs(there), **options), there, range(3))
    assert_same(here, there)
    assert not torch.equal(before, there[0].value())


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2, sparse=True)
        nn.init.ones_(self.table.weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.table(rows)

    def weights(self) -> list[RRef[nn.Parameter]]:
        return [RRef(self.table.weight)]


def test_sparse_gradients(cluster: LocalCluster) -> None:
    table, rows = Table(), torch.tensor([1, 3])
    optimizer = optim.SparseAdam(table.parameters(), lr=0.1)
    table(rows).sum().backward()
    optimizer.step()
    remote = zrpc.remote("b", Table)
    (weight,) = remote.rpc_sync().weights()
    distributed = DistributedOptimizer(optim.SparseAdam, [weight], lr=0.1)
    with autograd.context() as context_id:
        autograd.backward(context_id, [remote.rpc_sync().forward(rows).sum()])
        distributed.step(context_id)
    assert torch.equal(weight.to_here(), table.table.weight)


def test_lbfgs_says_that_it_cannot(there: list[RemotePart]) -> None:
    with pytest.raises(ValueError, match="LBFGS evaluates the model several times"):
        DistributedOptimizer(optim.LBFGS, rrefs(there))


# ------------------------------------------------------------------------------------------- groups


def test_groups_have_options_of_their_own(here: list[Part], there: list[RemotePart]) -> None:
    def groups(first: list[Any], second: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": [first[0], second[0]], "lr": 0.5},
            {"params": [second[1]], "momentum": 0.9},
            {"params": first[1]},
        ]

    mine = optim.SGD(groups(*(list(part.parameters()) for part in here)), lr=0.1)
    distributed = DistributedOptimizer(optim.SGD, groups(there[0].params, there[1].params), lr=0.1)
    assert [group["lr"] for group in distributed.param_groups] == [0.5, 0.1, 0.1]
    assert [group["momentum"] for group in distributed.param_groups] == [0, 0.9, 0]
    assert [len(group["params"]) for group in distributed.param_groups] == [2, 1, 1]
    train_here(mine, here, range(2))
    train_there(distributed, there, range(2))
    assert_same(here, there)
    for group in (*mine.param_groups, *distributed.param_groups):
        group["lr"] *= 0.1
    train_here(mine, here, range(2, 4))
    train_there(distributed, there, range(2, 4))
    assert_same(here, there)
    assert "lr: 0.05" in repr(distributed).replace("0.010000000000000002", "0.01")


def test_a_group_is_added(here: list[Part], there: list[RemotePart]) -> None:
    mine = optim.SGD([here[0].weight], lr=0.1, momentum=0.9)
    distributed = DistributedOptimizer(optim.SGD, [there[0].params[0]], lr=0.1, momentum=0.9)
    mine.add_param_group({"params": [here[1].weight, here[0].unused], "lr": 0.5})
    distributed.add_param_group({"params": [there[1].params[0], there[0].params[1]], "lr": 0.5})
    train_here(mine, here, range(2))
    train_there(distributed, there, range(2))
    assert_same(here, there)
    assert distributed.param_groups[1]["momentum"] == 0.9
    assert distributed.state_dict()["param_groups"][1]["params"] == [1, 2]


def test_named_parameters(there: list[RemotePart]) -> None:
    named = [("first", there[0].params[0]), ("second", there[1].params[0])]
    distributed = DistributedOptimizer(optim.SGD, named, lr=0.1)
    assert distributed.state_dict()["param_groups"][0]["param_names"] == ["first", "second"]
    train_there(distributed, there, range(1))


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ([nn.Parameter(torch.ones(1))], "takes RRefs to parameters, but one of the params is"),
        (torch.ones(1), "should be an iterable of RRefs or dicts"),
        ([3], "takes RRefs to parameters"),
    ],
)
def test_what_is_no_reference(cluster: LocalCluster, params: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        DistributedOptimizer(optim.SGD, params, lr=0.1)


def test_no_parameters_are_no_error_as_in_torch(cluster: LocalCluster) -> None:
    distributed = DistributedOptimizer(optim.SGD, [], lr=0.1)
    assert distributed.remote_optimizers == []
    with autograd.context() as context_id:
        distributed.step(context_id)


# ------------------------------------------------------------------------------------------- schedulers

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.1),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (n + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, 0.05),
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_schedulers_are_made_over_it(here: list[Part], there: list[RemotePart], name: str) -> None:
    mine = optim.SGD(parameters(here), lr=0.1, momentum=0.9)
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1, momentum=0.9)
    train_here(mine, here, range(4), SCHEDULERS[name](mine))
    train_there(distributed, there, range(4), SCHEDULERS[name](distributed))
    assert_same(here, there)
    assert [group["lr"] for group in distributed.param_groups] == [group["lr"] for group in mine.param_groups]


def test_every_scheduler_of_torch_is_among_them() -> None:
    known = {
        name
        for name, cls in vars(lr_scheduler).items()
        if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert known - set(SCHEDULERS) <= {"LRScheduler", "ReduceLROnPlateau"}


def test_it_has_the_defaults_of_the_class(there: list[RemotePart]) -> None:
    found = DistributedOptimizer(optim.AdamW, rrefs(there), lr=0.1).defaults
    assert found == optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.1).defaults


def test_a_plateau_lowers_the_rate(here: list[Part], there: list[RemotePart]) -> None:
    mine = optim.SGD(parameters(here), lr=torch.tensor(0.1))
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=torch.tensor(0.1))
    for train, optimizer, parts in ((train_here, mine, here), (train_there, distributed, there)):
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        for number in range(3):
            train(optimizer, parts, range(number, number + 1))  # type: ignore[operator]
            scheduler.step(1.0)
    assert float(distributed.param_groups[0]["lr"]) == pytest.approx(0.001)
    assert_same(here, there)


# ------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.Adagrad])
def test_one_process_goes_on_from_its_state_and_back(here: list[Part], there: list[RemotePart], cls: Any) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if cls is optim.SGD else {"lr": 0.1}
    distributed = DistributedOptimizer(cls, rrefs(there), **options)
    train_there(distributed, there, range(2))
    file = io.BytesIO()
    torch.save(distributed.state_dict(), file)
    file.seek(0)
    for mine, theirs in zip(here, there, strict=True):
        with torch.no_grad():
            mine.weight.copy_(theirs.value())
    alone = cls(parameters(here), lr=0.7)
    alone.load_state_dict(torch.load(file, weights_only=True))
    train_here(alone, here, range(2, 4))
    train_there(distributed, there, range(2, 4))
    assert_same(here, there)
    again = [RemotePart("c", 1), RemotePart("b", 2)]
    for mine, theirs in zip(here, again, strict=True):
        theirs.rref.rpc_sync().load_state_dict(mine.state_dict())
    restored = DistributedOptimizer(cls, rrefs(again), lr=0.3)
    restored.load_state_dict(alone.state_dict())
    assert restored.param_groups[0]["lr"] == 0.1
    train_here(alone, here, range(4, 6))
    train_there(restored, again, range(4, 6))
    assert_same(here, again)


def test_a_state_that_does_not_fit(there: list[RemotePart]) -> None:
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1)
    other = DistributedOptimizer(optim.SGD, there[0].params, lr=0.1)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        distributed.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        distributed.load_state_dict({"state": {}, "param_groups": []})


def test_it_is_neither_pickled_nor_sent(cluster: LocalCluster, there: list[RemotePart]) -> None:
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1)
    with pytest.raises(RRefMisuse, match="cannot be pickled or sent"):
        cluster["a"].rpc_sync("b", repr, (distributed,))


# ------------------------------------------------------------------------------------------- contexts and gradients


def gradients_of(part: RRef[Part]) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in part.local_value().parameters()]


def set_gradient(part: RRef[Part], value: float) -> None:
    weight = part.local_value().weight
    weight.grad = torch.full_like(weight, value)


def test_only_the_contexts_gradients_count_and_grad_is_left_alone(here: list[Part], there: list[RemotePart]) -> None:
    zrpc.rpc_sync("b", set_gradient, (there[0].rref, 1e6))
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1)
    mine = optim.SGD(parameters(here), lr=0.1)
    distributed.zero_grad()
    train_there(distributed, there, range(1))
    train_here(mine, here, range(1))
    assert_same(here, there)
    grad, unused = zrpc.rpc_sync("b", gradients_of, (there[0].rref,))
    assert grad is not None
    assert grad.max() == 1e6
    assert unused is None


def test_step_hooks_and_the_profilers_name_are_those_of_an_optimizer(there: list[RemotePart]) -> None:
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1)
    seen: list[str] = []
    distributed.register_step_pre_hook(lambda *_: seen.append("before"))
    distributed.register_step_post_hook(lambda *_: seen.append("after"))
    with torch.autograd.profiler.profile() as profile:
        train_there(distributed, there, range(1))
    assert seen == ["before", "after"]
    assert "Optimizer.step#DistributedOptimizer.step" in {event.name for event in profile.function_events}


def test_passes_of_one_context_add_up(here: list[Part], there: list[RemotePart]) -> None:
    mine = optim.SGD(parameters(here), lr=0.1)
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1)
    with autograd.context() as context_id:
        for number in range(2):
            loss_of(here, batch(number)).backward()
            autograd.backward(context_id, [loss_of(there, batch(number))])
        mine.step()
        distributed.step(context_id)
    assert_same(here, there)


def test_a_context_without_gradients_changes_nothing(there: list[RemotePart]) -> None:
    distributed = DistributedOptimizer(optim.Adam, rrefs(there), lr=0.1)
    before = there[0].value()
    with autograd.context() as context_id:
        distributed.step(context_id)
    assert torch.equal(before, there[0].value())
    assert distributed.state_dict()["state"] == {}


def test_a_context_that_is_over(there: list[RemotePart]) -> None:
    distributed = DistributedOptimizer(optim.SGD, rrefs(there), lr=0.1)
    with autograd.context() as context_id:
        pass
    with pytest.raises(AutogradMisuse, match=f"Could not find autograd context with id: {context_id}"):
        distributed.step(context_id)


# ------------------------------------------------------------------------------------------- errors


class FailsAtStep(optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise ValueError("Error running optimizer.")


class FailsOnB(optim.SGD):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if zrpc.get_worker_info().name == "b":
            raise ValueError("Error creating optimizer.")


def test_errors_of_the_workers(there: list[RemotePart]) -> None:
    with pytest.raises(ValueError, match="Error creating optimizer"):
        DistributedOptimizer(FailsOnB, rrefs(there), lr=0.1)
    distributed = DistributedOptimizer(FailsAtStep, rrefs(there), lr=0.1)
    with autograd.context() as context_id, pytest.raises(ValueError, match="Error running optimizer"):
        distributed.step(context_id)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        DistributedOptimizer(optim.SGD, rrefs(there), lr=-1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        DistributedOptimizer(optim.SGD, rrefs(there), speed=1)
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        DistributedOptimizer(optim.SGD, [zrpc.remote("b", Part, (1,))], lr=0.1)


# ------------------------------------------------------------------------------------------- several trainers


class Counting(optim.SGD):
    """Notices when two steps are made at once."""

    at_once = 0
    most = 0

    def step(self, closure: Any = None) -> Any:
        Counting.at_once += 1
        Counting.most = max(Counting.most, Counting.at_once)
        super().step()
        Counting.at_once -= 1


def push(weight: RRef[nn.Parameter], steps: int, momentum: float) -> float:
    """A trainer: fetches the parameter, and has ones as its gradient."""
    optimizer = DistributedOptimizer(Counting, [weight], lr=1.0, momentum=momentum)
    for _ in range(steps):
        with autograd.context() as context_id:
            autograd.backward(context_id, [weight.to_here().sum()])
            optimizer.step(context_id)
    state = optimizer.state_dict()["state"]
    return float(state[0]["momentum_buffer"][0, 0]) if momentum else 0.0


def test_steps_of_several_trainers_are_all_made_one_after_the_other(cluster: LocalCluster) -> None:
    part = RemotePart("b", 1)
    before = part.value()
    trainers = [zrpc.rpc_async(name, push, (part.params[0], 10, 0.0)) for name in ("c", "d")]
    torch.futures.wait_all(trainers)
    torch.testing.assert_close(part.value(), before - 20)
    assert Counting.most == 1


def test_each_trainer_has_momentum_of_its_own(cluster: LocalCluster) -> None:
    part = RemotePart("b", 1)
    assert zrpc.rpc_sync("c", push, (part.params[0], 2, 0.5)) == 1.5
    assert zrpc.rpc_sync("d", push, (part.params[0], 1, 0.5)) == 1.0


def train_elsewhere(parts: list[RemotePart], hogwild: bool) -> None:
    train_there(DistributedOptimizer(optim.SGD, rrefs(parts), lr=0.1, hogwild=hogwild), parts, range(1))


@pytest.mark.parametrize("hogwild", [False, True])
def test_a_graph_whose_parameters_another_trainer_changes(cluster: LocalCluster, hogwild: bool) -> None:
    parts = [RemotePart("b", 1), RemotePart("c", 2)]
    mine = DistributedOptimizer(optim.SGD, rrefs(parts), lr=0.1, hogwild=hogwild)
    start = parts[0].value()
    with ThreadPoolExecutor(1) as other, autograd.context() as context_id:
        loss = loss_of(parts, batch(0))
        # A thread of its own is in no context, so that the trainer on d can be in one.
        other.submit(zrpc.rpc_sync, "d", train_elsewhere, (parts, hogwild)).result(LONG)
        before = parts[0].value()
        assert not torch.equal(before, start)
        if hogwild:
            autograd.backward(context_id, [loss])
            mine.step(context_id)
            assert not torch.equal(parts[0].value(), before)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                autograd.backward(context_id, [loss])
