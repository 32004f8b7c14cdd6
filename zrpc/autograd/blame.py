"""Which operation of a graph raised, when torch's engine only passes on what was raised.

One rule: nothing here runs unless a pass has failed.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType

from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from zrpc.autograd.functions import Node

_NAMED = re.compile(r"Function (\w+) returned ")
"""How torch begins when gradients of a wrong number or shape come out of an operation."""
_SAVED = "_saved_"
"""Begins the names under which torch's nodes show what they have saved; to read one checks it as its backward does."""


def operation_of(error: BaseException, edges: Iterable[GradientEdge]) -> str:
    """The name of the node whose backward raised, in the graph behind some edges; '' if it cannot be told.

    It can be told of functions written in Python; of operations that returned gradients that do not fit; and of those that
    miss a tensor that they had saved, because it was changed in place or is used up.
    """
    text = str(error)
    found = _in_traceback(error.__traceback__)
    if not found and (named := _NAMED.match(text)):
        found = named[1]
    if not found:
        missing = [node for node in _walk(edges) if text in _complaints(node)]
        if missing:  # of those that can run, the engine runs the one that was made last
            found = max(missing, key=lambda node: node._sequence_nr()).name()
    return found


def _in_traceback(trace: TracebackType | None) -> str:
    name = ""
    for frame, _ in traceback.walk_tb(trace):
        owner = frame.f_locals.get("self")
        if isinstance(owner, BackwardCFunction):
            name = type(owner).__name__
    return name


def _walk(edges: Iterable[GradientEdge]) -> Iterator[Node]:
    waiting = [edge.node for edge in edges]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)


def _complaints(node: Node) -> set[str]:
    """What the node says of the tensors that it has saved and cannot use."""
    found = set()
    for name in dir(node):
        if name.startswith(_SAVED):
            try:
                getattr(node, name)
            except RuntimeError as error:
                found.add(str(error))
    return found
