"""Every kind of tensor arrives as it left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.errors import EncodeError, FrameError
from zrpc.serialization.dtypes import DTYPE_NUMBERS
from zrpc.serialization.pickler import Encoded, dumps_python, dumps_script, loads_python, loads_script
from zrpc.serialization.rebuild import StorageReader
from zrpc.serialization.tensors import COPY_BYTES

PLAIN = [d for d in DTYPE_NUMBERS if not str(d).startswith(("torch.q", "torch.bits"))]
QUANTIZED = [torch.quint8, torch.qint8, torch.qint32]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Sparse .* tensor support is in beta.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*nested tensors.*prototype.*:UserWarning"),
]


def frames(encoded: Encoded) -> tuple[bytes, list[bytes]]:
    """What a receiver gets: read-only bytes."""
    return bytes(encoded.body), [bytes(b) for b in encoded.buffers]


def through(value: object, codec: str = "script") -> object:
    if codec == "script":
        return loads_script(*frames(dumps_script(value)))
    return loads_python(*frames(dumps_python(value)))


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, in order."""
    storage = tensor.untyped_storage()
    size = tensor.element_size()
    whole = bytes(torch.empty(0, dtype=torch.uint8).set_(storage).numpy()) if storage.nbytes() else b""
    index = torch.zeros((), dtype=torch.int64)
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        index = index.unsqueeze(-1) + torch.arange(length) * stride
    positions = (index.reshape(-1) + tensor.storage_offset()).tolist()
    return b"".join(whole[p * size : (p + 1) * size] for p in positions)


def assert_same(got: object, sent: torch.Tensor) -> None:
    assert isinstance(got, torch.Tensor)
    assert (got.dtype, got.shape, got.layout, got.device) == (sent.dtype, sent.shape, sent.layout, sent.device)
    assert got.requires_grad == sent.requires_grad
    assert got.is_leaf
    assert (got.is_conj(), got.is_neg()) == (sent.is_conj(), sent.is_neg())
    if sent.numel():
        assert got.stride() == sent.stride()
    assert raw(got.detach()) == raw(sent.detach())


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits (0 or 1 for bool)."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.empty(shape, dtype=dtype)
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    storage.random_(0, 2 if dtype is torch.bool else 256, generator=generator)
    return tensor


@pytest.mark.parametrize("codec", ["script", "python"])
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_dtype(dtype: torch.dtype, codec: str) -> None:
    for shape in [(), (1,), (5,), (2, 3), (0,), (2, 0, 3)]:
        sent = random_tensor(dtype, shape)
        assert_same(through(sent, codec), sent)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_views_of_any_shape_and_stride(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.int8, torch.bfloat16, torch.complex64, torch.bool]))
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    strides = tuple(data.draw(st.integers(0, 5)) for _ in shape)
    offset = data.draw(st.integers(0, 40))
    base = random_tensor(dtype, (200,), data.draw(st.integers(0, 9)))
    sent = base.as_strided(shape, strides, offset)
    got = through([sent, sent], data.draw(st.sampled_from(["script", "python"])))
    assert isinstance(got, list)
    assert_same(got[0], sent)
    assert got[0] is got[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 12)), min_size=1, max_size=5), st.booleans())
def test_views_of_one_storage_stay_that(spans: list[tuple[int, int]], with_base: bool) -> None:
    base = torch.arange(100, dtype=torch.int32)
    sent = [base.narrow(0, start, min(length, 100 - start)) for start, length in spans] + [base] * with_base
    got = through(sent)
    assert isinstance(got, list)
    assert len({t.untyped_storage()._cdata for t in got}) == 1
    for mine, theirs in zip(got, sent, strict=True):
        assert torch.equal(mine, theirs)
    for tensor in got:
        tensor.zero_()
    assert all(not t.any() for t in got)
    assert base[1] == 1


def test_the_same_storage_with_two_dtypes() -> None:
    base = torch.arange(8, dtype=torch.int32)
    a, b = through((base, base.view(torch.float32)[2:]))  # type: ignore[misc]
    assert b.dtype is torch.float32
    a[2] = 0
    assert b[0] == 0
    b, a = through((base.view(torch.uint8)[4:], base))  # type: ignore[misc]
    assert a.untyped_storage()._cdata == b.untyped_storage()._cdata


def test_a_narrow_view_ships_its_span_only() -> None:
    base = torch.zeros(1 << 20)
    encoded = dumps_script(base[5000:5010])
    assert sum(memoryview(b).nbytes for b in encoded.buffers) <= 40 + 64


def test_a_large_tensor_is_not_copied_and_is_kept_alive() -> None:
    sent = torch.zeros(COPY_BYTES)  # four times as many bytes
    for value in (sent, sent[1:], sent.bfloat16(), sent.to(torch.complex64)):
        (buffer,) = dumps_script(value).buffers
        assert isinstance(buffer, memoryview)
        assert buffer.format == "B" or buffer.itemsize == 1
    (buffer,) = dumps_script(sent).buffers
    sent[0] = 1
    assert bytes(buffer[:4]) != bytes(4)
    del sent
    assert bytes(buffer[:4]) != bytes(4)


@pytest.mark.parametrize("count", [1, 100, 100_000])
def test_what_arrives_is_writable_owned_and_aligned(count: int) -> None:
    for sent in (torch.ones(count), torch.ones(count + 3)[3:], torch.ones(count, dtype=torch.bfloat16)):
        body, buffers = frames(dumps_script(sent))
        kept = [bytes(b) for b in buffers]
        got = loads_script(body, buffers)
        assert got.data_ptr() % got.element_size() == 0
        assert not got._is_view()
        got.add_(1)
        assert got[0] == 2
        assert buffers == kept


def test_grad_conj_and_neg_bits() -> None:
    weight = torch.randn(3, requires_grad=True)
    for sent in (weight, (weight * 2), weight[1:], torch.randn(2, 2, requires_grad=True).t()):
        got = through(sent)
        assert isinstance(got, torch.Tensor)
        assert got.requires_grad
        assert got.is_leaf
        assert got.grad_fn is None
        assert torch.equal(got, sent)
    z = torch.randn(4, dtype=torch.complex64)
    for sent in (z.conj(), z.conj().imag, z.conj().imag[:1], z[:1].conj(), torch._neg_view(torch.randn(3))):
        assert_same(through(sent), sent)


def test_parameter() -> None:
    sent = torch.nn.Parameter(torch.randn(3), requires_grad=False)
    assert type(through(sent)) is torch.Tensor
    got = through({"w": sent, "b": torch.nn.Parameter(torch.randn(2))}, "python")
    assert isinstance(got, dict)
    assert type(got["w"]) is torch.nn.Parameter
    assert not got["w"].requires_grad
    assert got["b"].requires_grad
    sent.note = "kept"  # type: ignore[attr-defined]
    marked = through(sent, "python")
    assert type(marked) is torch.nn.Parameter
    assert marked.note == "kept"  # type: ignore[attr-defined]


class Tagged(torch.Tensor):
    tag = ""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclass() -> None:
    sent = torch.arange(4.0).as_subclass(Tagged)
    sent.tag = "mine"
    got = through(sent, "python")
    assert type(got) is Tagged
    assert got.tag == "mine"
    assert torch.equal(got.as_subclass(torch.Tensor), torch.arange(4.0))
    with pytest.raises(EncodeError, match="Tagged"):
        dumps_script(sent)


@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
def test_quantized_per_tensor(dtype: torch.dtype) -> None:
    sent = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0 if dtype is torch.qint32 else 3, dtype)
    for tensor in (sent, sent[1:], sent.t()):
        got = through(tensor)
        assert isinstance(got, torch.Tensor)
        assert torch.equal(got.int_repr(), tensor.int_repr())
        assert (got.q_scale(), got.q_zero_point()) == (tensor.q_scale(), tensor.q_zero_point())
        assert got.stride() == tensor.stride()


@pytest.mark.parametrize("axis", [0, 1])
def test_quantized_per_channel(axis: int) -> None:
    scales, zeros = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2])
    sent = torch.quantize_per_channel(torch.randn(3, 3), scales, zeros, axis, torch.qint8)
    got = through(sent)
    assert isinstance(got, torch.Tensor)
    assert got.qscheme() == sent.qscheme()
    assert got.q_per_channel_axis() == axis
    assert torch.equal(got.dequantize(), sent.dequantize())


def test_quantized_packed() -> None:
    scales = torch.ones(2)
    sent = torch.quantize_per_channel(torch.arange(16.0).reshape(2, 8), scales, torch.zeros(2), 0, torch.quint4x2)
    got = through(sent)
    assert isinstance(got, torch.Tensor)
    assert torch.equal(got.dequantize(), sent.dequantize())


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc], ids=str)
def test_sparse_compressed(layout: torch.layout) -> None:
    dense = torch.eye(4, 6) * 3
    block = (2, 2) if layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    sent = dense.to_sparse(layout=layout, blocksize=block)
    got = through(sent)
    assert isinstance(got, torch.Tensor)
    assert got.layout is layout
    assert torch.equal(got.to_dense(), dense)


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_coo(coalesced: bool) -> None:
    sent = torch.sparse_coo_tensor(torch.tensor([[0, 1, 1], [2, 0, 0]]), torch.tensor([3.0, 4.0, 5.0]), (2, 3))
    if coalesced:
        sent = sent.coalesce()
    sent.requires_grad_()
    got = through(sent)
    assert isinstance(got, torch.Tensor)
    assert got.is_coalesced() is coalesced
    assert got.requires_grad
    assert torch.equal(got.to_dense(), sent.to_dense())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("codec", ["script", "python"])
def test_nested(layout: torch.layout, codec: str) -> None:
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    got = through(torch.nested.nested_tensor(parts, layout=layout), codec)
    assert isinstance(got, torch.Tensor)
    assert got.is_nested
    assert got.layout is layout
    for mine, theirs in zip(got.unbind(), parts, strict=True):
        assert torch.equal(mine, theirs)


def test_meta() -> None:
    sent = torch.empty(3, 4, device="meta").t()
    got = through(sent)
    assert isinstance(got, torch.Tensor)
    assert (got.is_meta, got.shape, got.stride()) == (True, sent.shape, sent.stride())


def test_a_layout_without_a_form_is_named() -> None:
    if not torch.backends.mkldnn.is_available():
        return
    with pytest.raises(EncodeError, match=r"args\[1\].*_mkldnn"):
        dumps_script((1, torch.randn(2, 2).to_mkldnn()), root="args")


@pytest.mark.parametrize("columns", [[[0, 0], [1, 1]], [[1, 0], [0, 0]], [[0, 1, 0], [0, 0, 1]]])
def test_a_sparse_tensor_is_not_believed_to_be_coalesced(columns: list[list[int]]) -> None:
    reader = StorageReader([])
    indices = torch.tensor(columns)
    values = torch.ones(indices.shape[1])
    with pytest.raises(FrameError, match="not in order"):
        reader.sparse_coo(indices, values, (2, 2), True, 0)
    assert not reader.sparse_coo(indices, values, (2, 2), False, 0).is_coalesced()
