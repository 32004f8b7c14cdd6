"""The recorded graph of one worker, looked at from its ends: which terminal is reached from which source.

One rule: a graph is walked once, node by node; the cost is linear in its nodes and edges (times a small factor for the
sets of sources, which are kept as the bits of an integer).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from zrpc.autograd.functions import RECEIVED_TYPE, Node, Received, edge_of
from zrpc.protocol.backward import Ends, Source, Terminal

_ACCUMULATE: Final[type] = type(get_gradient_edge(torch.empty(0, requires_grad=True)).node)


@dataclass
class Survey:
    """What a walk has found. `inputs` has, for each terminal, where its gradients are captured; one for each output."""

    ends: Ends
    inputs: dict[int, tuple[GradientEdge, ...]] = field(default_factory=dict)
    leaves: dict[int, torch.Tensor] = field(default_factory=dict)
    received: dict[int, Received] = field(default_factory=dict)
    foreign: set[int] = field(default_factory=set)
    """Terminals that are messages of another context, or of one that has ended."""
    reached_from: dict[int, frozenset[int]] = field(default_factory=dict)
    """The sources that lead to each terminal."""

    def sources_of(self, terminal: int) -> frozenset[int]:
        """The sources that lead to a terminal."""
        return self.reached_from[terminal]


class _Walk:
    """The nodes that can be reached, children before parents, and the terminals among them."""

    def __init__(self) -> None:
        self.order: list[Node] = []
        self.masks: dict[Node, int] = {}
        self.terminals: set[Node] = set()

    def visit(self, root: Node) -> None:
        masks = self.masks
        if root in masks:
            return
        stack: list[tuple[Node, Any]] = [self._enter(root)]
        while stack:
            node, children = stack[-1]
            for child in children:
                if child is not None and child not in masks:
                    stack.append(self._enter(child))
                    break
            else:
                stack.pop()
                self.order.append(node)

    def _enter(self, node: Node) -> tuple[Node, Any]:
        self.masks[node] = 0
        if type(node) is _ACCUMULATE or type(node) is RECEIVED_TYPE:
            self.terminals.add(node)
            return node, iter(())
        return node, iter([child for child, _ in node.next_functions])

    def spread(self) -> None:
        """Give each node the sources of those that lead to it."""
        masks, terminals = self.masks, self.terminals
        for node in reversed(self.order):
            if node not in terminals:
                mask = masks[node]
                for child, _ in node.next_functions:
                    if child is not None:
                        masks[child] |= mask


def survey(sources: Sequence[tuple[int, int, Sequence[GradientEdge]]], received: Mapping[Node, Received]) -> Survey:
    """Walk the graph behind some sources (number, moment, edges). `received` has the nodes of this context's messages."""
    walk = _Walk()
    for bit, (_, _, edges) in enumerate(sources):
        for edge in edges:
            walk.visit(edge.node)
            walk.masks[edge.node] |= 1 << bit
    walk.spread()
    found = Survey(Ends({}, {}))
    terminals: dict[int, Terminal] = {}
    reached: list[list[int]] = [[] for _ in sources]
    for key, node in enumerate(node for node in walk.order if node in walk.terminals):
        terminals[key] = Terminal(_describe(found, key, node, received))
        bits = tuple(_bits(walk.masks[node]))
        found.reached_from[key] = frozenset(sources[bit][0] for bit in bits)
        for bit in bits:
            reached[bit].append(key)
    groups = _group(len(sources), {walk.masks[node] for node in walk.order if node not in walk.terminals})
    ends = {number: Source(moment, tuple(reached[bit]), groups[bit]) for bit, (number, moment, _) in enumerate(sources)}
    found.ends = Ends(ends, terminals)
    return found


def _describe(found: Survey, key: int, node: Node, received: Mapping[Node, Received]) -> int | None:
    """Enter a terminal; returns its moment."""
    if type(node) is _ACCUMULATE:
        accumulate: Any = node
        found.leaves[key] = accumulate.variable
        found.inputs[key] = (edge_of(node),)
        return None
    message = received.get(node)
    if message is None:
        found.foreign.add(key)
        found.inputs[key] = tuple(edge_of(node, output) for output in range(len(node._input_metadata)))
        return None
    found.received[key] = message
    found.inputs[key] = tuple(edge_of(node, output) for output in range(message.tensors))
    return message.moment


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _group(count: int, masks: set[int]) -> list[int]:
    """The group of each source: sources that lead to one operation are of one group."""
    parent = list(range(count))

    def find(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for mask in masks:
        first: int | None = None
        for bit in _bits(mask):
            if first is None:
                first = find(bit)
            else:
                parent[find(bit)] = first
    return [find(item) for item in range(count)]
