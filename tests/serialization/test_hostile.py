"""A worker that takes TorchScript only unpickles nothing else: a corpus of hostile pickles, each refused before it acts."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator

import pytest
import torch

from zrpc.errors import CodecRefused, DecodeRefused, FrameError
from zrpc.options import AgentOptions
from zrpc.runtime.callables import Target
from zrpc.serialization.pickler import loads_script
from zrpc.testing import LocalCluster
from zrpc.wire.envelope import Codec, Envelope, Kind

LONG = 20.0  # reached only by a failure
acted: list[str] = []


def act(*what: object) -> str:
    acted.append(str(what))
    return "acted"


class Reduced:
    def __reduce__(self) -> tuple[object, ...]:
        return act, ("reduce",)


class Stateful:
    def __setstate__(self, state: object) -> None:
        act("setstate")

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


class Made:
    def __new__(cls, *args: object) -> Made:
        act("new", *args) if args else None
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[str]:
        return ("x",)


def with_name(module: bytes, name: bytes, argument: bytes = b"\x8c\x01x") -> bytes:
    """Calls a name by STACK_GLOBAL and REDUCE: opcodes that the codec has."""
    short = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731
    return b"\x80\x05" + short(module) + short(name) + b"\x93" + argument + b"\x85R."


CORPUS: dict[str, bytes] = {
    **{f"reduce, protocol {n}": pickle.dumps(Reduced(), n) for n in range(6)},
    **{f"setstate, protocol {n}": pickle.dumps(Stateful(), n) for n in range(2, 6)},
    **{f"new, protocol {n}": pickle.dumps(Made(), n) for n in range(2, 6)},
    "os.system": with_name(b"os", b"system"),
    "posix.system": with_name(b"posix", b"system"),
    "builtins.eval": with_name(b"builtins", b"eval"),
    "builtins.getattr": with_name(b"builtins", b"getattr"),
    "import": with_name(b"importlib", b"import_module"),
    "subprocess": with_name(b"subprocess", b"Popen"),
    "this module": with_name(__name__.encode(), b"act"),
    "torch.load": with_name(b"torch", b"load"),
    "torch.hub": with_name(b"torch.hub", b"load"),
    "torch storage": with_name(b"torch.storage", b"_load_from_bytes"),
    "torch rebuild": with_name(b"torch._utils", b"_rebuild_tensor_v2"),
    "numpy": with_name(b"numpy.core.multiarray", b"_reconstruct"),
    "codecs": with_name(b"_codecs", b"encode"),
    "a dotted name of the codec's module": with_name(b"z", b"same.__globals__"),
    "zrpc's own modules": with_name(b"zrpc.runtime.callee", b"import_function"),
    "GLOBAL": b"\x80\x05cos\nsystem\n\x8c\x01x\x85R.",
    "INST": b"\x80\x05(\x8c\x01xios\nsystem\n.",
    "OBJ": b"\x80\x05(cos\nsystem\n\x8c\x01xo.",
    "NEWOBJ": b"\x80\x05\x8c\x02os\x8c\x06system\x93)\x81.",
    "BUILD": b"\x80\x05}}b.",
    "EXT1": b"\x80\x05\x82\x01.",
    "PERSID": b"\x80\x05Px\n.",
    "BINPERSID": b"\x80\x05K\x01Q.",
    "a large PUT": b"\x80\x05Nr\xff\xff\xff\x7f.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
    "protocol 0 in protocol 5": b"\x80\x05S'x'\n.",
    "a long LONG4": b"\x80\x05\x8b\xff\xff\xff\x7f.",
    "a second pickle": b"\x80\x05N." + pickle.dumps(Reduced()),
    "BYTEARRAY8 of 2^60": b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b".",
}


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_the_codec_refuses_it(name: str) -> None:
    acted.clear()
    with pytest.raises((DecodeRefused, FrameError)):
        loads_script(CORPUS[name])
    assert acted == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    options = AgentOptions(init_timeout=LONG, codecs=("script", "builtin"))
    with LocalCluster(["a", "b"], options_of={"b": options}) as running:
        yield running


def send(cluster: LocalCluster, codec: Codec, body: bytes, function: str) -> object:
    """A call whose body is of our own making."""
    a = cluster["a"].agent
    peer = a.peers.find("b")
    number = next(a.caller._next_id)
    envelope = Envelope(Kind.CALL, number, a.info.id, a.identity.incarnation, peer.incarnation, codec=codec, body=body)
    envelope.function = function
    reply = a.caller._exchange(peer, Target(function, codec), envelope, number, a._clock() + LONG, LONG)
    return a.values.read_reply(reply, peer.info)


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_a_worker_refuses_it(cluster: LocalCluster, name: str) -> None:
    acted.clear()
    with pytest.raises((DecodeRefused, FrameError)):
        send(cluster, Codec.BUILTIN, CORPUS[name], "aten::add")
    with pytest.raises(CodecRefused):
        send(cluster, Codec.PYTHON, CORPUS[name], "os:getpid")
    assert acted == []
    assert cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2


def test_the_corpus_acts_where_it_is_believed() -> None:
    """It is hostile indeed: a plain unpickler runs it."""
    acted.clear()
    load: Callable[[bytes], object] = pickle.loads
    for name in ("reduce, protocol 2", "setstate, protocol 5", "new, protocol 4", "this module"):
        load(CORPUS[name])
    assert len(acted) == 4
