"""YAML text as plain values that remember where they came from.

One rule: nothing here knows the schema. What cannot be plain values (broken syntax, a key twice, a key that is no text)
becomes a problem with its line, and reading goes on so that all problems are found in one go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""The way from the top of a document to a value: keys of maps and indices of lists."""

MAX_NODES = 100_000
"""A few lines of YAML with aliases can name billions of values; no configuration comes near this many."""
MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass
class Tree:
    """A document's value, and the place (such as `cluster.yaml:12`) of everything in it."""

    source: str
    value: Any = None
    places: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place_of(self, path: Path) -> str:
        """Where the value at `path` is written; of its nearest parent when it is written nowhere."""
        for length in range(len(path), -1, -1):
            place = self.places.get(path[:length])
            if place is not None:
                return place
        return self.source

    def complain(self, place: str, path: Path, why: str) -> None:
        """Note a problem: `place: dotted.path: why`."""
        where = f"{dotted(path)}: " if path else ""
        self.problems.append(f"{place}: {where}{why}")


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it: `roles.shard.args[0]`."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += f".{part}" if out else part
    return out


def show(value: object) -> str:
    """A value as a problem quotes it: short, and in YAML's words for what Python calls otherwise."""
    words = {None: "nothing", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, dict):
        return f"a map of {len(value)}" if value else "an empty map"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_tree(text: str, source: str) -> Tree:
    """Read one YAML document. Problems are in the result; nothing is raised for bad text."""
    tree = Tree(source)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _Reader(tree, loader).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        context = f" {error.context}" if error.context else ""
        tree.problems.append(f"{place}: not YAML: {error.problem or 'it ends too early'}{context}")
    except yaml.YAMLError as error:  # characters that YAML forbids
        tree.problems.append(f"{source}: not YAML: {error}")
    return tree


class _Reader:
    """Turns nodes into values, and notes the line of each."""

    def __init__(self, tree: Tree, loader: yaml.SafeLoader) -> None:
        self._tree = tree
        self._loader = loader
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node) -> None:
        self._tree.value = self._value(node, ())

    def _line(self, node: yaml.Node) -> str:
        return f"{self._tree.source}:{node.start_mark.line + 1}"

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._tree.places.setdefault(path, self._line(node))
        self._count += 1
        if self._count == MAX_NODES:
            self._tree.complain(self._line(node), path, f"more than {MAX_NODES} values, counting what aliases repeat")
        if self._count >= MAX_NODES:
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._tree.complain(self._line(node), path, "an alias inside the value that it names")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # a date such as 2024-13-45
            self._tree.complain(self._line(node), path, f"cannot be read ({error}): put it in quotes")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        self._check_duplicates(node, path)
        self._loader.flatten_mapping(node)  # `<<: *defaults`; what it brings in comes first and is overridden
        value: dict[str, Any] = {}
        for key_node, child in node.value:
            key = self._key(key_node, path)
            if key is not None:
                here = (*path, key)
                self._tree.places[here] = self._line(key_node)
                value[key] = self._value(child, here)
        return value

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        key = self._scalar(node, path) if isinstance(node, yaml.ScalarNode) else None
        if isinstance(key, str):
            return key
        written = node.value if isinstance(node, yaml.ScalarNode) else "a list or map"
        self._tree.complain(self._line(node), path, f"expected a key of text, found {written}: put it in quotes")
        return None

    def _check_duplicates(self, node: yaml.MappingNode, path: Path) -> None:
        first: dict[str, str] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == MERGE_TAG:
                continue
            line = self._line(key_node)
            if key_node.value in first:
                self._tree.complain(
                    line, (*path, key_node.value), f"the key is there already, at {first[key_node.value]}"
                )
            first.setdefault(key_node.value, line)


def override(tree: Tree, assignment: str) -> None:
    """Apply `roles.shard.count=8` to a tree; the value is read as YAML. Problems are noted in the tree."""
    place = f"--set {assignment}"
    keys, equals, text = assignment.partition("=")
    parts = keys.split(".")
    if not equals or not all(parts):
        tree.problems.append(f"{place}: expected KEY.KEY=VALUE, such as roles.shard.count=8")
        return
    given = read_tree(text, place)
    if given.problems:
        tree.problems.append(f"{place}: the value is not YAML; put it in quotes")
        return
    if tree.value is None:
        tree.value = {}
    here = tree.value
    path: Path = ()
    for index, part in enumerate(parts):
        step = _step(here, part)
        if step is None:
            tree.complain(place, path, f"expected a map that {part!r} could be a key of, found {show(here)}")
            return
        path = (*path, step)
        if index == len(parts) - 1:
            here[step] = given.value
            tree.places = {known: at for known, at in tree.places.items() if known[: len(path)] != path}
            tree.places[path] = place
        else:
            if isinstance(here, dict) and here.get(step) is None:
                here[step] = {}
                tree.places[path] = place
            here = here[step]


def _step(here: object, part: str) -> str | int | None:
    if isinstance(here, dict):
        return part
    if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
        return int(part)
    return None
