from __future__ import annotations

from typing import Any

import pytest
import torch

from zrpc.errors import ConfigError
from zrpc.launch.literals import parse_call_arguments, parse_literal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("1+2j", 1 + 2j),
        ("'two words'", "two words"),
        ("word", "word"),
        ("aten::add", "aten::add"),
        ("path/to-x.pt", "path/to-x.pt"),
        ("/etc/hosts", "/etc/hosts"),
        ("../x", "../x"),
        ("-.5", -0.5),
        ("a.b", "a.b"),
        ("None", None),
        ("True", True),
        ("[1, (2, 'x'), {'k': [3]}]", [1, (2, "x"), {"k": [3]}]),
        ("{1, 2}", {1, 2}),
        ("b'x'", b"x"),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    assert parse_literal(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tensor([[1., 2.]])", torch.tensor([[1.0, 2.0]])),
        ("ones(2, 3)", torch.ones(2, 3)),
        ("torch.zeros(2, dtype=torch.int64)", torch.zeros(2, dtype=torch.int64)),
        ("full((2, 2), -7)", torch.full((2, 2), -7)),
        ("arange(5, dtype=bfloat16)", torch.arange(5, dtype=torch.bfloat16)),
        ("eye(3)", torch.eye(3)),
    ],
)
def test_tensors(text: str, value: torch.Tensor) -> None:
    made = parse_literal(text)
    assert made.dtype == value.dtype
    assert torch.equal(made, value)


def test_tensors_inside_others() -> None:
    made = parse_literal("[ones(1), {'k': zeros(2)}]")
    assert torch.equal(made[1]["k"], torch.zeros(2))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tensor([1,", "it is not a literal; quote text"),
        ("two words", "it is not a literal"),
        ("__import__('os').system('x')", "is not one of"),
        ("[x]", "x is not a literal; quote text"),
        ("ones(2).sum()", "is not one of"),
        ("load('x')", "load is not one of"),
        ("ones(2, dtype=os)", "os is not a dtype"),
        ("ones(-1)", "negative dimension"),
        ("tensor([[1], [1, 2]])", "expected sequence"),
        ("2**3", "2 ** 3 is not a literal"),
        ("{**x}", "is not a literal"),
        ("ones(**x)", "is not a literal"),
        ("(lambda: 1)()", "is not one of"),
        ("", "it is not a literal"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"argument") as caught:
        parse_literal(text)
    assert why in str(caught.value)


def test_call_arguments() -> None:
    assert parse_call_arguments(["1", "alpha=2", "name=word", "'a=b'"]) == ([1, "a=b"], {"alpha": 2, "name": "word"})
