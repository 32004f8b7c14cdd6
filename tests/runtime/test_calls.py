"""Calls from worker to worker: each kind of function, each way to end."""

from __future__ import annotations

import enum
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from zrpc import functions
from zrpc.clock import monotonic
from zrpc.errors import (
    ArgumentMismatch,
    CallTimeout,
    CodecRefused,
    CodeRefused,
    EncodeError,
    InvalidDestination,
    LimitExceeded,
    LocalFault,
    RemoteFault,
    UnknownFunction,
    UnknownWorker,
    WorkerLost,
)
from zrpc.options import AgentOptions
from zrpc.runtime.context import current_agent, running
from zrpc.testing import LocalCluster

LONG = 20.0  # reached only by a failure


class Pair(NamedTuple):
    number: int
    tensor: torch.Tensor


@torch.jit.script
def scale(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return x * factor


@torch.jit.script
def pair(number: int) -> Pair:
    return Pair(number, torch.full([2], number))


@torch.jit.script
def fail(x: torch.Tensor) -> torch.Tensor:
    assert x.numel() > 100, "too small"
    return x


@torch.jit.script
def later(x: torch.Tensor) -> torch.jit.Future[torch.Tensor]:
    return torch.jit.fork(scale, x)


class Unwritable:
    def __init__(self, ending: str) -> None:
        self.ending = ending

    def __reduce__(self) -> str:
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}.get(self.ending, GeneratorExit)


def return_unwritable(ending: str) -> Unwritable:
    return Unwritable(ending)


def divide(a: int, b: int) -> float:
    return a / b


class BrokenStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@functions.async_execution
@torch.jit.script
def not_later(x: torch.Tensor) -> torch.Tensor:
    return x


class Doubler(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def add(a: int, b: int = 10) -> int:
    return a + b


def who() -> str:
    return current_agent().info.name


def chain(names: list[str]) -> list[str]:
    """Call through all the workers in turn, and say where it went."""
    here = [current_agent().info.name]
    if not names:
        return here
    return here + current_agent().caller.call_sync(names[0], chain, (names[1:],), None, -1)


def raise_value_error() -> None:
    raise ValueError("a bad value")


def seconds_left() -> float | None:
    return None if running.deadline is None else running.deadline - monotonic()


def seconds_left_there(name: str) -> float | None:
    """As a call to `name`, made here with a long time-out, sees it."""
    left: float | None = current_agent().caller.call_sync(name, seconds_left, (), None, 1000)
    return left


class OnlyHereError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_odd_error() -> None:
    raise OnlyHereError(1, 2)


def return_a_lock() -> object:
    return threading.Lock()


@functions.async_execution
def add_later(a: int, b: int) -> torch.futures.Future[int]:
    future: torch.futures.Future[int] = torch.futures.Future()
    threading.Thread(target=lambda: future.set_result(a + b)).start()
    return future


_gate = threading.Event()
_entered = threading.Event()


def wait_at_the_gate() -> bool:
    _entered.set()
    return _gate.wait(LONG)


@pytest.fixture(autouse=True)
def _closed_gate() -> Iterator[None]:
    _gate.clear()
    _entered.clear()
    yield
    _gate.set()


@pytest.fixture(scope="module", params=["memory", "curve"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"], network=request.param) as running_cluster:
        yield running_cluster


@pytest.mark.parametrize("to", ["b", "a"])
def test_every_kind_of_function(cluster: LocalCluster, to: str) -> None:
    a = cluster["a"]
    x = torch.arange(3.0)
    assert torch.equal(a.rpc_sync(to, scale, (x,)), x * 2)
    assert torch.equal(a.rpc_sync(to, scale, (x,), {"factor": 3}), x * 3)
    assert torch.equal(a.rpc_sync(to, torch.add, (x, x)), x * 2)
    assert torch.equal(a.rpc_sync(to, "aten::mul", (x, 4)), x * 4)
    assert torch.equal(a.rpc_sync(to, torch.jit.script(Doubler()), (x,)), x * 2)
    assert a.rpc_sync(to, add, (1,)) == 11
    assert a.rpc_sync(to, add, (1,), {"b": 2}) == 3
    assert a.rpc_sync(to, lambda n: n * 7, (6,)) == 42
    assert a.rpc_sync(to, "operator:sub", (7, 5)) == 2
    assert a.rpc_sync(to, who) == to
    assert a.rpc_sync(to, add_later, (3, 4)) == 7
    assert torch.equal(a.rpc_sync(to, later, (x,)), x * 2)


def test_the_asynchronous_way_gives_torch_futures(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", scale, (torch.ones(2),))
    assert isinstance(future, torch.futures.Future)
    assert torch.equal(future.wait(), torch.full((2,), 2.0))
    chained = cluster["a"].rpc_async("b", add, (1, 2)).then(lambda f: f.value() + 1)
    assert chained.wait() == 4


def test_a_named_tuple_comes_back_as_one(cluster: LocalCluster) -> None:
    result = cluster["a"].rpc_sync("b", pair, (3,))
    assert (type(result).__name__, result._fields, result.number) == ("Pair", ("number", "tensor"), 3)


def test_a_workers_id_and_info_name_it_too(cluster: LocalCluster) -> None:
    info = cluster["b"].agent.info
    assert cluster["a"].rpc_sync(info.id, who) == "b"  # type: ignore[arg-type]
    assert cluster["a"].rpc_sync(info, who) == "b"  # type: ignore[arg-type]


def test_wrong_arguments_raise_here_and_send_nothing(cluster: LocalCluster) -> None:
    a = cluster["a"].agent
    made = a.meter.counts().calls_made
    for args, kwargs, text in [
        ((1,), None, "Expected a value of type 'Tensor' for argument 'x' but instead found type 'int'"),
        ((), None, "missing value for argument 'x'"),
        ((torch.ones(1), 1.0, 2.0), None, "expected at most 2 argument"),
        ((torch.ones(1),), {"bogus": 1}, "Unknown keyword argument 'bogus'"),
    ]:
        with pytest.raises(ArgumentMismatch, match=text):
            cluster["a"].rpc_sync("b", scale, args, kwargs)
    with pytest.raises(LocalFault, match="takes a function"):
        cluster["a"].rpc_sync("b", 5)
    with pytest.raises(LocalFault, match="timeout"):
        cluster["a"].rpc_sync("b", add, (1,), timeout=-2)
    with pytest.raises(EncodeError, match=r"args\[1\]\['key'\]\[0\], of type _thread.lock"):
        cluster["a"].rpc_sync("b", add, (1, {"key": [threading.Lock()]}))
    assert a.meter.counts().calls_made == made


def test_an_exception_arrives_as_its_type_with_where_it_came_from(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="a bad value") as caught:
        cluster["a"].rpc_sync("b", raise_value_error)
    info = cluster["b"].agent.info
    assert f"On WorkerInfo(id={info.id}, name=b):" in str(caught.value)
    assert "raise_value_error" in str(caught.value)
    with pytest.raises(ValueError, match="a bad value"):
        cluster["a"].rpc_async("b", raise_value_error).wait()
    with pytest.raises(torch.jit.Error, match="too small"):
        cluster["a"].rpc_sync("b", fail, (torch.ones(1),))


def test_an_exception_that_cannot_be_made_here(cluster: LocalCluster) -> None:
    with pytest.raises(RemoteFault, match="Original exception on remote side was") as caught:
        cluster["a"].rpc_sync("b", raise_odd_error)
    assert "OnlyHereError" in str(caught.value)


def test_a_result_that_cannot_be_sent_is_the_callers_error(cluster: LocalCluster) -> None:
    with pytest.raises(EncodeError, match=r"cannot send result, of type _thread\.lock"):
        cluster["a"].rpc_sync("b", return_a_lock)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_result_that_ends_things_while_it_is_written_is_the_callers_error(
    cluster: LocalCluster, error: BaseException
) -> None:
    with pytest.raises(RemoteFault, match=type(error).__name__):
        cluster["a"].rpc_sync("b", return_unwritable, (type(error).__name__,), timeout=LONG)
    reference = cluster["a"].remote("b", return_unwritable, (type(error).__name__,))
    with pytest.raises(RemoteFault, match=type(error).__name__):
        reference.to_here(LONG)


def test_an_error_is_answered_also_when_it_cannot_be_shown_here(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", BrokenStream())
    with pytest.raises(ZeroDivisionError):
        cluster["a"].rpc_sync("b", divide, (1, 0), timeout=LONG)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e300, -2.0])
def test_what_is_no_timeout_is_refused_and_sends_nothing(cluster: LocalCluster, timeout: float) -> None:
    for call in (cluster["a"].rpc_sync, cluster["a"].rpc_async, cluster["a"].remote):
        with pytest.raises(LocalFault, match="timeout is seconds"):
            call("b", who, timeout=timeout)


def test_a_timeout_of_years(cluster: LocalCluster) -> None:
    assert cluster["a"].rpc_sync("b", who, timeout=1e9) == "b"
    assert cluster["a"].rpc_async("b", who, timeout=1e9).wait() == "b"
    assert cluster["a"].remote("b", who, timeout=1e9).to_here(1e9) == "b"
    assert cluster["a"].remote("a", who, timeout=1e9).to_here(1e9) == "a"


def test_an_async_function_must_return_a_future(cluster: LocalCluster) -> None:
    with pytest.raises(RuntimeError, match="Async functions must return an IValue of Future type, but got Tensor"):
        cluster["a"].rpc_sync("b", not_later, (torch.ones(1),))


@pytest.mark.parametrize("to", [0.5, None, True, b"b", ["b"]])
def test_what_names_no_worker(cluster: LocalCluster, to: Any) -> None:
    for call in (cluster["a"].rpc_sync, cluster["a"].rpc_async, cluster["a"].remote):
        with pytest.raises(InvalidDestination, match="Cannot get WorkerInfo from name"):
            call(to, who)
    assert issubclass(InvalidDestination, ValueError)


class Name(str, enum.Enum):
    B = "b"


def test_kinds_of_names(cluster: LocalCluster) -> None:
    number = cluster["b"].agent.info.id
    for to in ("b", Name.B, number, enum.IntEnum("Rank", {"B": number}).B, cluster["b"].agent.info):
        assert cluster["a"].rpc_sync(to, who) == "b"  # type: ignore[arg-type]


def test_unknown_workers_and_functions(cluster: LocalCluster) -> None:
    with pytest.raises(UnknownWorker, match="Known workers: a, b, c"):
        cluster["a"].rpc_sync("nobody", who)
    with pytest.raises(UnknownFunction, match="no function named 'nothing'"):
        cluster["a"].rpc_sync("b", "nothing")
    with pytest.raises(UnknownFunction, match="no_such_module"):
        cluster["a"].rpc_sync("b", "no_such_module:f")
    with pytest.raises(UnknownFunction):
        cluster["a"].rpc_sync("b", "operator:no_such_function")


def test_a_deadline_ends_the_call_here(cluster: LocalCluster) -> None:
    for call in (
        lambda: cluster["a"].rpc_sync("b", wait_at_the_gate, timeout=0.05),
        lambda: cluster["a"].rpc_async("b", wait_at_the_gate, timeout=0.05).wait(),
        lambda: cluster["a"].rpc_async("a", wait_at_the_gate, timeout=0.05).wait(),
    ):
        with pytest.raises(CallTimeout, match="RPC ran for more than set timeout") as caught:
            call()
        assert "wait_at_the_gate" in str(caught.value)
        assert caught.value.seconds == 0.05
    _gate.set()
    assert cluster["a"].rpc_sync("b", who) == "b", "a late reply must not be taken for another call's"


def test_calls_that_time_out_leave_few_lanes_open() -> None:
    with LocalCluster(["a", "b"], network="curve") as cluster:
        for _ in range(20):
            with pytest.raises(CallTimeout):
                cluster["a"].rpc_sync("b", wait_at_the_gate, timeout=0.01)
        peer = cluster["a"].agent.peers.find("b")
        assert len(peer._strays) == 16
        _gate.set()


def test_calls_inside_a_call_inherit_what_is_left_of_its_deadline(cluster: LocalCluster) -> None:
    assert cluster["a"].rpc_sync("b", seconds_left, timeout=0) is None
    assert 0 < cluster["a"].rpc_sync("b", seconds_left, timeout=30) <= 30
    assert 0 < cluster["a"].rpc_sync("b", seconds_left_there, ("c",), timeout=30) <= 30
    assert 100 < cluster["a"].rpc_sync("b", seconds_left_there, ("c",), timeout=0) <= 1000


def test_calls_through_many_workers_and_back(cluster: LocalCluster) -> None:
    names = ["b", "c", "a", "a", "b"] * 8
    assert cluster["a"].rpc_sync(names[0], chain, (names[1:],)) == names


def test_thousands_of_calls_at_once(cluster: LocalCluster) -> None:
    futures = [cluster["a"].rpc_async("b", add, (i, i)) for i in range(2000)]
    assert torch.futures.wait_all(futures) == [2 * i for i in range(2000)]


def test_many_threads_call_at_once(cluster: LocalCluster) -> None:
    wrong: list[object] = []

    def call(seed: int) -> None:
        for i in range(50):
            result = cluster["a"].rpc_sync("b", add, (seed, i))
            if result != seed + i:
                wrong.append((seed, i, result))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert not wrong


def test_received_tensors_are_writable_and_ones_own(cluster: LocalCluster) -> None:
    x = torch.zeros(100_000)
    result = cluster["a"].rpc_sync("a", scale, (x,))
    result += 1
    assert x.sum() == 0


def test_a_killed_worker_fails_the_calls_that_wait_for_it() -> None:
    with LocalCluster(["a", "b"], network="curve") as cluster:
        a = cluster["a"]
        future = a.rpc_async("b", wait_at_the_gate)
        errors: list[BaseException] = []

        def call() -> None:
            try:
                a.rpc_sync("b", wait_at_the_gate)
            except WorkerLost as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert _entered.wait(LONG)
        assert cluster.broker is not None
        killer = threading.Thread(target=lambda: cluster.kill("b"))
        killer.start()
        with pytest.raises(WorkerLost, match="worker 'b' was lost"):
            future.wait()
        thread.join(LONG)
        assert [error.worker for error in errors if isinstance(error, WorkerLost)] == ["b"]
        with pytest.raises(WorkerLost, match="calling it"):
            a.rpc_sync("b", who)
        _gate.set()
        killer.join(LONG)
        again = cluster.start("b")
        assert again.agent.identity.life == 1
        assert a.rpc_sync("b", who) == "b"


def test_a_worker_refuses_the_codecs_that_it_was_not_given() -> None:
    script_only = AgentOptions(codecs=("script",), init_timeout=LONG)
    with LocalCluster(["a", "b"], options_of={"b": script_only}) as cluster:
        a = cluster["a"]
        assert torch.equal(a.rpc_sync("b", scale, (torch.ones(1),)), torch.full((1,), 2.0))
        with pytest.raises(CodecRefused, match="python codec"):
            a.rpc_sync("b", who)
        with pytest.raises(CodecRefused, match="it accepts script"):
            a.rpc_sync("b", torch.add, (torch.ones(1), 1))
        cluster["b"].agent.code.add_local(scale, "scale")
        assert torch.equal(a.rpc_sync("b", "scale", (torch.ones(1),)), torch.full((1,), 2.0))


def test_code_is_not_even_loaded_by_a_worker_that_takes_no_script_calls() -> None:
    python_only = AgentOptions(codecs=("python",), init_timeout=LONG)
    with LocalCluster(["a", "b"], options_of={"b": python_only}) as cluster:
        source = "def unwanted(x: Tensor) -> Tensor:\n    return x - 1\n"
        with pytest.raises(CodecRefused, match="script codec"):
            cluster["a"].rpc_sync("b", torch.jit.CompilationUnit(source).unwanted, (torch.ones(1),))
        assert "brought=0" in repr(cluster["b"].agent.code)


def test_a_worker_that_takes_no_code_runs_only_what_it_has() -> None:
    strict = AgentOptions(accept_code=False, init_timeout=LONG)
    with LocalCluster(["a", "b"], options_of={"b": strict}) as cluster:
        a, b = cluster["a"], cluster["b"]
        source = "def brought(x: Tensor) -> Tensor:\n    return x - 1\n"
        brought = torch.jit.CompilationUnit(source).brought
        with pytest.raises(CodeRefused, match="brought"):
            a.rpc_sync("b", brought, (torch.ones(1),))
        b.agent.code.add_local(scale, "scale")
        assert torch.equal(a.rpc_sync("b", "scale", (torch.ones(1), 5.0)), torch.full((1,), 5.0))


def test_code_travels_once() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        a = cluster["a"]
        source = "def travelling(x: Tensor) -> Tensor:\n    return x + 41\n"
        function = torch.jit.CompilationUnit(source).travelling
        assert a.rpc_sync("b", function, (torch.ones(1),)).item() == 42
        before = a.agent.meter.counts().bytes_out
        assert a.rpc_sync("b", function, (torch.ones(1),)).item() == 42
        assert a.agent.meter.counts().bytes_out - before < 600
        other = torch.jit.CompilationUnit(source.replace("41", "1")).travelling
        assert a.rpc_sync("b", other, (torch.ones(1),)).item() == 2
        assert a.rpc_async("b", function, (torch.ones(1),)).wait().item() == 42


def test_a_message_over_the_limit_is_refused_and_nothing_else_suffers() -> None:
    small = AgentOptions(max_message_bytes=100_000, init_timeout=LONG)
    with LocalCluster(["a", "b"], options=small, network="curve") as cluster:
        with pytest.raises(LimitExceeded, match="max_message_bytes"):
            cluster["a"].rpc_sync("b", scale, (torch.zeros(100_000),))
        with pytest.raises(LimitExceeded, match="max_message_bytes"):
            cluster["a"].rpc_sync("b", torch.zeros, ([100_000],))
        assert cluster["a"].rpc_sync("b", who) == "b"


def test_garbage_on_the_listener_is_counted_and_survived() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        a, b = cluster["a"].agent, cluster["b"].agent
        link = a.transport.connect(b.listener.address, "member")
        for frames in ([b""], [b"garbage"], [b"Z" * 100], [b"Z\x09" + bytes(10)], []):
            link.send(frames)
        assert cluster["a"].rpc_sync("b", who) == "b"
        assert sum(cluster["a"].agent.ask("b", {"what": "statistics"}, 5)["refused"].values()) >= 4


def test_work_whose_deadline_has_passed_is_not_started() -> None:
    one = AgentOptions(num_worker_threads=1, init_timeout=LONG)
    with LocalCluster(["a", "b"], options_of={"b": one}) as cluster:
        a = cluster["a"]
        first = a.rpc_async("b", wait_at_the_gate)
        assert _entered.wait(LONG)
        for _ in range(2):  # the second one gives the first one's deadline time to pass there too
            with pytest.raises(CallTimeout):
                a.rpc_sync("b", add, (1, 2), timeout=0.05)
        _gate.set()
        assert first.wait()
        assert a.rpc_sync("b", add, (1, 2)) == 3
        assert cluster["b"].agent.meter.counts().calls_dropped >= 1


def test_statistics_and_questions() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        cluster["a"].rpc_sync("b", add, (1, 2))
        told = cluster["a"].agent.ask("b", {"what": "statistics"}, 5)
        assert (told["name"], told["calls_served"], told["calls_failed"]) == ("b", 1, 0)
        assert told["bytes_in"] > 0
        assert told["memory_bytes"] > 0
        reach = cluster["a"].agent.ask("b", {"what": "reach"}, 5)["reach"]
        assert set(reach) == {"a", "b"}
        assert all("ms" in entry for entry in reach.values()), reach
        assert "cannot tell" in cluster["a"].agent.ask("b", {"what": "?"}, 5)["error"]
