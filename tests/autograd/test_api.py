"""Contexts and passes between real agents: what is recorded, what it comes to, how it fails, how it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contexts_world import contexts_of, wait_until

import zrpc
from zrpc import autograd
from zrpc.errors import AutogradMisuse, BackwardFault, CallTimeout, NotInitialized, WorkerLost
from zrpc.functions import async_execution
from zrpc.options import AgentOptions
from zrpc.rref import RRef
from zrpc.runtime.context import current_agent, running
from zrpc.testing import LocalCluster

LONG = 30.0
weight = torch.ones(3, requires_grad=True)
gate = threading.Event()
entered = threading.Event()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b", "c")) as made:
        yield made


@pytest.fixture(autouse=True)
def as_a(request: pytest.FixtureRequest) -> Iterator[None]:
    if "cluster" in request.fixturenames:
        running.agent = request.getfixturevalue("cluster")["a"].agent
    yield
    running.agent = None


def gradients_on(cluster: LocalCluster, name: str, context_id: int) -> dict[torch.Tensor, torch.Tensor]:
    gradients: dict[torch.Tensor, torch.Tensor] = contexts_of(cluster, name).get(context_id).gradients
    return gradients


def times(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x * y


def weighted(x: torch.Tensor) -> torch.Tensor:
    return x * weight


@torch.jit.script
def script_ones(n: int) -> torch.Tensor:
    return torch.ones(n).requires_grad_()


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise ValueError("no gradient today")


class Waits(Fails):
    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        entered.set()
        gate.wait(LONG)
        return gradient


def failing(x: torch.Tensor) -> torch.Tensor:
    return Fails.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def waiting(x: torch.Tensor) -> torch.Tensor:
    return Waits.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def through(names: list[str], function: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Call a function on the last of some workers, through the others."""
    if not names:
        return function(x)
    agent = current_agent()
    return agent.caller.call_sync(names[0], through, (names[1:], function, x), None, -1) * 1  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------ recording


def test_gradients_go_to_the_context(cluster: LocalCluster) -> None:
    x = torch.arange(3.0, requires_grad=True)
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", weighted, (x,))
        autograd.backward(context_id, [y.sum()])
        assert autograd.get_gradients(context_id)[x].tolist() == [1, 1, 1]
        assert gradients_on(cluster, "b", context_id)[weight].tolist() == [0, 1, 2]
        assert x.grad is None
        assert weight.grad is None


def test_a_function_is_recorded_without_arguments_that_require_grad(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
        assert y.requires_grad
        autograd.backward(context_id, [y.sum()])
        assert gradients_on(cluster, "b", context_id)[weight].tolist() == [1, 1, 1]


def test_a_script_function_is_recorded_without_arguments(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", script_ones, (2,))
        autograd.backward(context_id, [y.sum()])
        (gradient,) = gradients_on(cluster, "b", context_id).values()
        assert gradient.tolist() == [1, 1]


def test_an_operator_is_recorded_if_an_argument_requires_grad(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        cluster["a"].rpc_sync("b", torch.add, (torch.ones(2), 1))
        assert autograd._current_context()._known_worker_ids() == set()
        y = cluster["a"].rpc_sync("b", torch.add, (torch.ones(2, requires_grad=True), 1))
        assert autograd._current_context()._known_worker_ids() == {cluster["b"].agent.info.id}
        autograd.backward(context_id, [y.sum()])


def test_nothing_is_recorded_outside_of_a_context(cluster: LocalCluster) -> None:
    y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
    assert y.is_leaf
    assert y.requires_grad


def test_nothing_is_recorded_without_grad(cluster: LocalCluster) -> None:
    with autograd.context(), torch.no_grad():
        y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3, requires_grad=True),))
        assert y.is_leaf
        assert autograd._current_context()._send_functions() == {}


def test_what_arrives_may_be_changed_in_place(cluster: LocalCluster) -> None:
    x = torch.ones(3, requires_grad=True)
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", times, (x, x))
        y += 1
        y[0] *= 5
        autograd.backward(context_id, [y.sum()])
        assert autograd.get_gradients(context_id)[x].tolist() == [10, 2, 2]


def test_parameters_that_are_arguments_are_tensors_there(cluster: LocalCluster) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", times, (parameter, parameter))
        autograd.backward(context_id, [y.sum()])
        assert autograd.get_gradients(context_id)[parameter].tolist() == [2, 2, 2]


def test_modules_that_are_sent_keep_parameters_of_their_own(cluster: LocalCluster) -> None:
    module = torch.nn.Linear(2, 1)

    def apply(module: torch.nn.Linear) -> tuple[bool, torch.Tensor]:
        return isinstance(module.weight, torch.nn.Parameter) and module.weight.is_leaf, module(torch.ones(2))

    with autograd.context() as context_id:
        is_parameter, y = cluster["a"].rpc_sync("b", apply, (module,))
        assert is_parameter
        autograd.backward(context_id, [y.sum()])
        assert autograd.get_gradients(context_id) == {}
        assert len(gradients_on(cluster, "b", context_id)) == 2


def test_complex_sparse_and_integer_tensors(cluster: LocalCluster) -> None:
    def mixed(z: torch.Tensor, s: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return (z * z.conj()).real.sum() + torch.sparse.sum(s * 2) + i.sum()

    z = torch.tensor([1 + 2j], requires_grad=True)
    s = torch.eye(2).to_sparse().requires_grad_()
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", mixed, (z, s, torch.arange(3)))
        autograd.backward(context_id, [y])
        gradients = autograd.get_gradients(context_id)
        assert gradients[z].tolist() == [2 + 4j]
        assert gradients[s].to_dense().diagonal().tolist() == [2, 2]


def test_tensor_subclasses(cluster: LocalCluster) -> None:
    x = torch.ones(3, requires_grad=True).as_subclass(Named)
    x.label = "first"

    def label(t: Any) -> Any:
        return type(t).__name__, t.label, (t * 3).as_subclass(torch.Tensor)

    with autograd.context() as context_id:
        name, found, y = cluster["a"].rpc_sync("b", label, (x,))
        assert (name, found) == ("Named", "first")
        autograd.backward(context_id, [y.sum()])
        (gradient,) = autograd.get_gradients(context_id).values()
        assert gradient.tolist() == [3, 3, 3]


class Named(torch.Tensor):
    label: str


@async_execution
def added_later(to: str, x: torch.Tensor) -> Any:
    agent = current_agent()
    return agent.caller.call_async(to, weighted, (x,), None, -1).then(lambda done: done.wait() + x * weight)


async def coroutine(x: torch.Tensor) -> torch.Tensor:
    await asyncio.sleep(0)
    return x * weight


@pytest.mark.parametrize("call", ["async_execution", "coroutine", "remote", "method"])
def test_the_context_goes_with_every_kind_of_call(cluster: LocalCluster, call: str) -> None:
    x = torch.ones(3, requires_grad=True)
    a = cluster["a"]
    with autograd.context() as context_id:
        if call == "async_execution":
            y = a.rpc_async("b", added_later, ("c", x)).wait() / 2
        elif call == "coroutine":
            y = a.rpc_sync("b", coroutine, (x,))
        elif call == "remote":
            y = a.remote("b", weighted, (x,)).to_here()
        else:
            y = a.remote("b", Holder).rpc_sync().forward(x)
        autograd.backward(context_id, [y.sum()])
        assert autograd.get_gradients(context_id)[x].tolist() == [1, 1, 1]
        assert weight in gradients_on(cluster, "b", context_id)


class Holder:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * weight


def test_callbacks_are_in_the_context_of_their_call(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        future = cluster["a"].rpc_async("b", torch.add, (torch.ones(1), 1))
        found = future.then(lambda _: autograd._current_context().context_id)
        assert found.wait() == context_id


def test_threads_have_no_context_of_others(cluster: LocalCluster) -> None:
    found: list[Any] = []

    def look() -> None:
        running.agent = cluster["a"].agent
        with pytest.raises(AutogradMisuse, match="doesn't have a valid autograd context"):
            autograd._current_context()
        with autograd.context() as context_id:
            found.append(context_id)

    with autograd.context() as context_id:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(LONG)
        assert found
        assert found != [context_id]


# ------------------------------------------------------------------------------------ failing


@pytest.mark.parametrize(
    ("roots", "text"),
    [
        ([], "No tensors provided"),
        ([torch.ones(1)], "requires_grad not set on root"),
        ([torch.ones(2, requires_grad=True) * 1], "is not a scalar"),
        ([torch.ones(1, requires_grad=True)], "does not have a valid gradient function"),
    ],
)
def test_roots_that_cannot_be(cluster: LocalCluster, roots: list[torch.Tensor], text: str) -> None:
    with autograd.context() as context_id, pytest.raises(AutogradMisuse, match=text):
        autograd.backward(context_id, roots)


@pytest.mark.parametrize("arguments", [(None, []), (1, None), (1, torch.ones(1)), (1, [3]), ("1", [])])
def test_arguments_that_are_none(cluster: LocalCluster, arguments: Any) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        autograd.backward(*arguments)


def test_a_context_that_is_none(cluster: LocalCluster) -> None:
    x = torch.ones(1, requires_grad=True)
    for use in (lambda: autograd.backward(77, [x * 1]), lambda: autograd.get_gradients(77)):
        with pytest.raises(AutogradMisuse, match="Could not find autograd context with id: 77"):
            use()


def test_contexts_do_not_nest(cluster: LocalCluster) -> None:
    with autograd.context(), pytest.raises(AutogradMisuse, match="Already have an autograd context"):
        autograd.context().__enter__()


def test_backward_of_a_tensor_that_came(cluster: LocalCluster) -> None:
    with autograd.context():
        y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
        with pytest.raises(RuntimeError, match=r"zrpc\.autograd\.backward"):
            y.sum().backward()


def test_an_error_here_is_raised_as_it_is(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
        with pytest.raises(ValueError, match=r"^no gradient today$"):
            autograd.backward(context_id, [failing(y).sum()])


@pytest.mark.parametrize("way", [["b"], ["b", "c"], ["c", "a", "b"]])
def test_an_error_elsewhere_says_where_and_in_what(cluster: LocalCluster, way: list[str]) -> None:
    with autograd.context() as context_id:
        y = through(way, failing, torch.ones(3, requires_grad=True))
        with pytest.raises(BackwardFault, match=r"Error on Node [0-9]+: no gradient today") as caught:
            autograd.backward(context_id, [y.sum()])
        assert (caught.value.worker, caught.value.operation) == (way[-1], "FailsBackward")
        assert autograd._get_debug_info()["num_current_backward_passes"] == "0"
        z = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
        autograd.backward(context_id, [z.sum()])  # the context can still be used


def test_a_graph_that_was_used_up(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
        loss = y.sum()
        autograd.backward(context_id, [loss], retain_graph=False)
        with pytest.raises(RuntimeError):
            autograd.backward(context_id, [loss])


def test_a_tensor_of_another_context(cluster: LocalCluster) -> None:
    with autograd.context():
        old = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
    with autograd.context() as context_id, pytest.raises(RuntimeError, match="another distributed autograd context"):
        autograd.backward(context_id, [(old * 2).sum()])


def test_a_worker_that_dies_in_a_pass() -> None:
    gate.clear()
    entered.clear()
    with LocalCluster(("a", "b")) as cluster:
        running.agent = cluster["a"].agent
        with autograd.context() as context_id:
            y = cluster["a"].rpc_sync("b", waiting, (torch.ones(3, requires_grad=True),))
            failed: list[BaseException] = []

            def run() -> None:
                running.agent = cluster["a"].agent
                try:
                    autograd.backward(context_id, [y.sum()])
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            assert entered.wait(LONG)
            assert cluster.broker is not None
            cluster.broker.exited("b", 0, "it was killed")
            thread.join(LONG)
            gate.set()
            assert isinstance(failed[0], WorkerLost)
            assert failed[0].worker == "b"


def test_a_worker_that_died_before_the_pass() -> None:
    with LocalCluster(("a", "b")) as cluster:
        running.agent = cluster["a"].agent
        with autograd.context() as context_id:
            y = cluster["a"].rpc_sync("b", weighted, (torch.ones(3),))
            cluster.stop("b")
            wait_until(lambda: len(cluster["a"].agent.members()) == 1)
            with pytest.raises(WorkerLost, match="'b'"):
                autograd.backward(context_id, [y.sum()])


def test_a_pass_that_takes_too_long() -> None:
    gate.clear()
    with LocalCluster(("a", "b"), options=AgentOptions(rpc_timeout=0.3)) as cluster:
        running.agent = cluster["a"].agent
        with autograd.context() as context_id:
            y = cluster["a"].rpc_sync("b", waiting, (torch.ones(3, requires_grad=True),))
            with pytest.raises(CallTimeout, match="backward"):
                autograd.backward(context_id, [y.sum()])
            gate.set()


# ------------------------------------------------------------------------------------ ending


def test_a_context_ends_on_every_worker_that_it_came_to(cluster: LocalCluster) -> None:
    before = {name: len(contexts_of(cluster, name)) for name in "abc"}
    with autograd.context() as context_id:
        through(["b", "c", "a", "b"], weighted, torch.ones(3))
        assert all(contexts_of(cluster, name).find(context_id) for name in "abc")
    wait_until(lambda: all(len(contexts_of(cluster, name)) == before[name] for name in "abc"))
    with pytest.raises(AutogradMisuse):
        autograd.get_gradients(context_id)


def test_a_context_whose_pass_failed_ends_too(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        y = through(["b", "c"], failing, torch.ones(3, requires_grad=True))
        with pytest.raises(BackwardFault):
            autograd.backward(context_id, [y.sum()])
    wait_until(lambda: not any(contexts_of(cluster, name).find(context_id) for name in "abc"))


def test_a_context_ends_with_its_maker() -> None:
    with LocalCluster(("a", "b", "c")) as cluster:
        running.agent = cluster["a"].agent
        made = autograd.context()
        context_id = made.__enter__()
        through(["b", "c"], weighted, torch.ones(3))
        autograd.api.recorder.set(None)
        running.agent = None
        cluster.kill("a")
        assert cluster.broker is not None
        cluster.broker.exited("a", 0, "it was killed")
        wait_until(lambda: not any(contexts_of(cluster, name).find(context_id) for name in "bc"))


def test_a_context_ends_behind_a_worker_that_is_lost() -> None:
    with LocalCluster(("a", "b", "c")) as cluster:
        running.agent = cluster["a"].agent
        with autograd.context() as context_id:
            through(["b", "c"], weighted, torch.ones(3))
            cluster.kill("b")
            assert cluster.broker is not None
            cluster.broker.exited("b", 0, "it was killed")
            wait_until(lambda: len(cluster["a"].agent.members()) == 2)
        wait_until(lambda: contexts_of(cluster, "c").find(context_id) is None)


def test_the_memory_of_a_pass_is_given_back(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        for _ in range(20):
            y = through(["b", "c"], weighted, torch.ones(3, requires_grad=True))
            autograd.backward(context_id, [y.sum()])
        for name in "abc":
            context = contexts_of(cluster, name).get(context_id)
            assert len(context.sent) == 0
            assert context.passes == {}
        gc.collect()


def test_references_go_backward(cluster: LocalCluster) -> None:
    x = torch.ones(3, requires_grad=True)
    with autograd.context() as context_id:
        loss = cluster["a"].remote("b", total, (x,))
        loss.backward(context_id)
        assert autograd.get_gradients(context_id)[x].tolist() == [1, 1, 1]
    with autograd.context() as context_id:
        own: RRef[torch.Tensor] = cluster["a"].rref((x * 2).sum())
        own.backward(context_id)
        assert autograd.get_gradients(context_id)[x].tolist() == [2, 2, 2]


def total(x: torch.Tensor) -> torch.Tensor:
    return (x * weight).sum()


def test_hooks_of_the_accumulating_node(cluster: LocalCluster) -> None:
    x = torch.ones(2, requires_grad=True)
    seen: list[Any] = []
    node: Any = torch.autograd.graph.get_gradient_edge(x).node
    node.register_prehook(lambda gradients: (gradients[0] * 10,))
    node.register_hook(lambda _inputs, outputs: seen.append(outputs[0].tolist()))
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", times, (x, x)) + x
        autograd.backward(context_id, [y.sum()])
        assert autograd.get_gradients(context_id)[x].tolist() == [30, 30]
        assert seen == [[30, 30]]


def test_gradients_that_were_looked_at_do_not_change(cluster: LocalCluster) -> None:
    x = torch.ones(2, requires_grad=True)
    with autograd.context() as context_id:
        y = cluster["a"].rpc_sync("b", times, (x, x)).sum()
        autograd.backward(context_id, [y], retain_graph=True)
        first = autograd.get_gradients(context_id)
        autograd.backward(context_id, [y])
        assert first[x].tolist() == [2, 2]
        assert autograd.get_gradients(context_id)[x].tolist() == [4, 4]


# ------------------------------------------------------------------------------------------- a shutdown in the block


def join_alone(folder: Path) -> None:
    options = zrpc.TensorPipeRpcBackendOptions(init_method=f"file://{folder / 'init'}")
    zrpc.init_rpc("alone", rank=0, world_size=1, rpc_backend_options=options)


@pytest.mark.parametrize("graceful", [True, False])
def test_a_block_is_left_quietly_after_a_shutdown_in_it(tmp_path: Path, graceful: bool) -> None:
    join_alone(tmp_path)
    with autograd.context():
        zrpc.rpc_sync("alone", times, args=(torch.ones(3, requires_grad=True), torch.ones(3)))
        zrpc.shutdown(graceful=graceful)
    with pytest.raises(NotInitialized), autograd.context():
        pass


def test_what_the_block_raises_after_a_shutdown_is_what_is_raised(tmp_path: Path) -> None:
    join_alone(tmp_path)

    def fails() -> None:
        with autograd.context():
            zrpc.shutdown(graceful=False)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        fails()
    assert raised.value.__context__ is None


def test_a_block_that_outlives_its_worker_leaves_the_next_ones_contexts_alone(tmp_path: Path) -> None:
    join_alone(tmp_path)
    try:
        with autograd.context():
            zrpc.shutdown()
            join_alone(tmp_path)
            book: Any = current_agent().values.contexts
            kept = book.begin()
        assert book.find(kept.context_id) is kept
        with autograd.context() as context_id:
            assert context_id != kept.context_id
    finally:
        zrpc.shutdown(graceful=False)


# ------------------------------------------------------------------------------------------- which operation failed


def spoilt(x: torch.Tensor) -> torch.Tensor:
    saved = (x * weight).exp()
    result = saved.sin()
    with torch.no_grad():
        saved.add_(1)
    return result


def test_an_error_on_another_worker_names_an_operation_of_torchs_own(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        loss = cluster["a"].rpc_sync("b", spoilt, (torch.ones(3),)).sum()
        with pytest.raises(
            BackwardFault, match=r"modified by an inplace operation.*worker 'b', in SinBackward0"
        ) as raised:
            autograd.backward(context_id, [loss])
    assert (raised.value.worker, raised.value.operation) == ("b", "SinBackward0")
