"""Torch's engine, run for a part of a pass."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.autograd.graph import get_gradient_edge

from zrpc.autograd.graph import survey
from zrpc.autograd.passes import PassState
from zrpc.protocol.backward import ROOTS, Run

RUN = Run((ROOTS,), False)


def pass_of(output: torch.Tensor, gradient: torch.Tensor) -> PassState:
    """A pass to whose only source this gradient has come."""
    edges = [get_gradient_edge(output)]
    state = PassState(survey([(ROOTS, 0, edges)], {}), {ROOTS: edges}, False)
    state.arrived[ROOTS] = [gradient]
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_gradients_come_to_the_leaves(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    gradient = torch.full((2, 3), 5, dtype=dtype)
    [found] = pass_of(x * 2, gradient).run(RUN).values()
    [expected] = torch.autograd.grad([x * 2], [x], [gradient])
    assert found[0] is not None
    assert torch.equal(found[0], expected)


def test_the_library_for_symbolic_shapes_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    x = torch.ones(3, requires_grad=True)
    assert len(pass_of(x * 2, torch.ones(3)).run(RUN)) == 1
    with pytest.raises(ImportError):
        torch.autograd.grad([x * 2], [x], [torch.ones(3)])


@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 3), ()])
def test_a_gradient_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Mismatch in shape.*and its tensor one of \(3,\)"):
        pass_of(x * 2, torch.ones(shape)).run(RUN)


def test_a_complex_gradient_of_a_real_tensor_is_refused() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch\.complex64 came for a tensor of type torch\.float32"):
        pass_of(x * 2, torch.ones(3, dtype=torch.complex64)).run(RUN)


def test_sparse_gradients_are_taken() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    gradient = torch.ones(3, 2).to_sparse()
    [found] = pass_of(x * 2, gradient).run(RUN).values()
    assert found[0] is not None
    assert torch.equal(found[0].to_dense(), torch.full((3, 2), 2.0))
