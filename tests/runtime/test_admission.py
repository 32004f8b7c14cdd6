"""A worker takes the functions on its list, and so many calls of one caller; its other limits have their errors too."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from zrpc.errors import CallNotAllowed, ConfigError, FrameError, LimitExceeded, TooManyCalls
from zrpc.options import AgentOptions
from zrpc.runtime.admission import Admission
from zrpc.runtime.callables import python_name
from zrpc.testing import LocalCluster
from zrpc.wire.envelope import Codec, Envelope, Kind

LONG = 20.0  # reached only by a failure
ran: list[str] = []
release = threading.Event()


def listed() -> str:
    ran.append("listed")
    return "listed"


def unlisted() -> None:
    ran.append("unlisted")


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return ran.append, ("unpickled",)


def take(_value: object) -> None:
    ran.append("take")


def hold() -> None:
    assert release.wait(LONG)


@torch.jit.script
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    ran.clear()
    options = AgentOptions(
        init_timeout=LONG, allow=(f"{__name__}:listed", f"{__name__}:Trap*", "aten::a*", "__torch__.*doubled")
    )
    with LocalCluster(["a", "b"], options_of={"b": options}) as made:
        yield made


def test_what_is_on_the_list_runs(cluster: LocalCluster) -> None:
    a = cluster["a"]
    assert a.rpc_sync("b", listed) == "listed"
    assert a.rpc_sync("b", f"{__name__}:listed") == "listed"
    assert a.rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2
    assert a.rpc_sync("b", doubled, args=(torch.ones(1),)) == 2
    assert a.remote("b", listed).to_here() == "listed"


def test_what_is_not_is_refused_unread(cluster: LocalCluster) -> None:
    a = cluster["a"]
    for call in (
        lambda: a.rpc_sync("b", unlisted),
        lambda: a.rpc_sync("b", take, args=(Trap(),)),
        lambda: a.rpc_async("b", f"{__name__}:unlisted").wait(),
        lambda: a.rpc_sync("b", torch.mul, args=(torch.ones(1), 1)),
    ):
        with pytest.raises(CallNotAllowed, match="does not take calls of"):
            call()
    assert ran == []


def test_a_pickle_of_another_function_than_its_header_says(cluster: LocalCluster) -> None:
    a, name = cluster["a"].agent, python_name(listed)
    peer = a.peers.find("b")
    envelope = Envelope(Kind.CALL, 1 << 40, a.info.id, a.identity.incarnation, peer.incarnation)
    a.values.write(envelope, Codec.PYTHON, (unlisted, (), {}), peer.key, None)
    envelope.function = name
    reply = a.caller._exchange(peer, _target(name), envelope, 1 << 40, a._clock() + LONG, LONG)
    with pytest.raises(CallNotAllowed, match="unlisted"):
        a.values.read_reply(reply, peer.info)
    assert ran == []


def _target(name: str) -> object:
    class Named:
        def __init__(self) -> None:
            self.name = name
            self.script = None

    return Named()


def test_a_static_group_can_end_though_there_is_a_list() -> None:
    admission = Admission("w", ("m:f",), 10)
    admission.check_name("zrpc.collectives:_gather")
    with pytest.raises(CallNotAllowed):
        admission.check_name("zrpc.internal:_run_serialized")
    for number in range(10_000):
        with pytest.raises(CallNotAllowed):
            admission.check_name(f"n:{number}")
    assert len(admission._known) <= 4096


def test_pending_calls_of_one_caller() -> None:
    release.clear()
    options = AgentOptions(init_timeout=LONG, max_pending_calls=3, num_worker_threads=8)
    with LocalCluster(["a", "b", "c"], options_of={"b": options}) as cluster:
        held = [cluster["a"].rpc_async("b", hold) for _ in range(3)]
        with pytest.raises(TooManyCalls, match="has 3 calls of this caller under way"):
            cluster["a"].rpc_async("b", hold).wait()
        assert cluster["c"].rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2, "others have their own"
        release.set()
        torch.futures.wait_all(held)
        assert cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2
        b = cluster["b"].agent
        assert b.callee._admission.pending((cluster["a"].agent.info.id, cluster["a"].agent.identity.incarnation)) <= 1


def test_tensors_in_a_message() -> None:
    options = AgentOptions(init_timeout=LONG, max_message_tensors=4)
    with LocalCluster(["a", "b"], options=options) as cluster:
        four = [torch.ones(1) for _ in range(4)]
        assert cluster["a"].rpc_sync("b", len, args=(four,)) == 4
        with pytest.raises(LimitExceeded, match="the number of buffers in a message is 5, over the limit of 4"):
            cluster["a"].rpc_sync("b", len, args=([*four, torch.ones(1)],))


def test_nesting() -> None:
    def nested(depth: int) -> object:
        value: object = 1
        for _ in range(depth):
            value = [value]
        return value

    options = AgentOptions(init_timeout=LONG, max_nesting=10)
    with LocalCluster(["a", "b"], options_of={"b": options}) as cluster:
        with pytest.raises(FrameError, match="values are nested more than 10 deep"):
            cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), nested(30)))
        assert cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2


def test_code() -> None:
    options = AgentOptions(init_timeout=LONG, max_code_bytes=100)
    strange = torch.jit.CompilationUnit("def f_too_long(x: Tensor) -> Tensor:\n    return x + 1\n").f_too_long
    with (
        LocalCluster(["a", "b"], options_of={"b": options}) as cluster,
        pytest.raises(LimitExceeded, match="the code of a TorchScript function"),
    ):
        cluster["a"].rpc_sync("b", strange, args=(torch.ones(1),))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_message_tensors": 0},
        {"max_nesting": 1001},
        {"max_code_bytes": -1},
        {"max_pending_calls": 0},
        {"allow": "one"},
        {"allow": ("",)},
    ],
)
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AgentOptions(**wrong)  # type: ignore[arg-type]
