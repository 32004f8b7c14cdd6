"""Which operation of a graph raised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import get_gradient_edge

from zrpc.autograd.blame import operation_of


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise ValueError("expected")


class Misfits(Raises):
    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient.new_ones(7)


def leaf() -> torch.Tensor:
    return torch.ones(3, requires_grad=True)


def blamed(output: torch.Tensor) -> str:
    """The operation that is blamed when torch's engine runs from here and fails."""
    edge = get_gradient_edge(output)
    with pytest.raises((RuntimeError, ValueError)) as raised:
        output.sum().backward()  # type: ignore[no-untyped-call]
    return operation_of(raised.value, [edge])


def test_a_function_written_in_python() -> None:
    assert blamed(Raises.apply(leaf() * 2).sin()) == "RaisesBackward"


def test_gradients_that_do_not_fit() -> None:
    assert blamed(Misfits.apply(leaf() * 2).sin()) == "MisfitsBackward"


def test_a_saved_tensor_that_was_changed_in_place() -> None:
    x = leaf()
    saved = (x * 2).exp()
    output = (saved.sin() + x.cos()) * 3
    with torch.no_grad():
        saved.add_(1)
    assert blamed(output) == "SinBackward0"


@pytest.mark.parametrize("retain_graph", [True, False])
def test_the_one_that_ran_first_is_blamed_among_those_that_would_raise(retain_graph: bool) -> None:
    x = leaf()
    first, last = (x * 2).exp(), (x * 3).exp()
    output = first.sin() + last.cos()
    with torch.no_grad():
        first.add_(1)
        last.add_(1)
    edge = get_gradient_edge(output)
    with pytest.raises(RuntimeError) as raised:
        output.sum().backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    assert operation_of(raised.value, [edge]) == "CosBackward0"


def test_a_graph_that_is_used_up() -> None:
    output = leaf().sin()
    output.sum().backward(retain_graph=False)  # type: ignore[no-untyped-call]
    assert blamed(output) == "SinBackward0"


def test_what_cannot_be_told() -> None:
    y = leaf() * 2
    y.register_hook(_refuse)
    assert blamed(y.sin()) == ""


def _refuse(_gradient: torch.Tensor) -> None:
    raise ValueError("expected")


def test_without_a_graph() -> None:
    assert operation_of(ValueError("expected"), []) == ""
