"""Arguments of a call as people type them: Python literals, and tensors made by a few named constructors.

One rule: nothing is evaluated. The text is parsed, and only the forms listed here are built.

    3  2.5  1+2j  'text'  word  None  True  [1, 2]  (1, 'a')  {'k': 1}          plain values
    tensor([[1., 2.]])  zeros(2, 3)  ones(4)  full((2, 2), 7)  arange(5)  eye(3)  rand(2)  randn(2)  randint(9, (2,))
    ones(2, dtype=int64)  torch.ones(2)                                          with a dtype; with torch's prefix
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any, Final

import torch

from zrpc.errors import ConfigError

CONSTRUCTORS: Final = frozenset(
    ["tensor", "zeros", "ones", "full", "arange", "linspace", "eye", "rand", "randn", "randint", "empty"]
)
DTYPES: Final = frozenset(
    [
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "int",
        "long",
        "half",
        "float",
        "double",
    ]
)
_WORD = re.compile(r"(?:[A-Za-z_/~]|\.{1,2}/)[\w.:/@+-]*\Z")
_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(?!=)(.*)\Z", re.DOTALL)


def parse_call_arguments(texts: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword (`name=value`) arguments. Raises `ConfigError` for what cannot be read."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for text in texts:
        match = _KEYWORD.match(text)
        if match is None:
            positional.append(parse_literal(text))
        else:
            keywords[match[1]] = parse_literal(match[2])
    return positional, keywords


def parse_literal(text: str) -> Any:
    """One value. A single word that is no literal is text. Raises `ConfigError`."""
    if _WORD.match(text) and text not in ("None", "True", "False"):
        return text
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _bad(text, "it is not a literal; quote text as \"'two words'\"") from None
    try:
        return _build(body)
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise _bad(text, str(error).splitlines()[0]) from None


def _bad(text: str, why: str) -> ConfigError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ConfigError(f"argument {shown}", [why])


def _build(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _construct(node)
    if isinstance(node, ast.List):
        return [_build(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_build(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise ValueError("'**' is not a literal")
        return {_build(key): _build(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, (ast.Name, ast.Attribute)):
        raise ValueError(f"{ast.unparse(node)} is not a literal; quote text")
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is not a literal") from None


def _construct(node: ast.Call) -> torch.Tensor:
    name = _dotted(node.func).removeprefix("torch.")
    if name not in CONSTRUCTORS:
        raise ValueError(f"{ast.unparse(node.func)} is not one of {', '.join(sorted(CONSTRUCTORS))}")
    keywords: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("'**' is not a literal")
        keywords[keyword.arg] = _dtype(keyword.value) if keyword.arg == "dtype" else _build(keyword.value)
    made = getattr(torch, name)(*(_build(argument) for argument in node.args), **keywords)
    assert isinstance(made, torch.Tensor)
    return made


def _dtype(node: ast.expr) -> torch.dtype:
    name = _dotted(node).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"{ast.unparse(node)} is not a dtype; there are {', '.join(sorted(DTYPES))}")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _dotted(node: ast.expr) -> str:
    """`a.b.c` for names and attributes, nothing for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""
