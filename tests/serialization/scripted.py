"""TorchScript functions, classes and modules that tests send."""

from enum import Enum
from typing import NamedTuple

import torch

CPU = torch.device("cpu")


class Point(NamedTuple):
    x: torch.Tensor
    label: str


class Color(Enum):
    RED = 1
    GREEN = 2


@torch.jit.script
class Counter:
    def __init__(self, start: int):
        self.count = start
        self.weights = torch.ones(2)

    def value(self) -> int:
        return self.count


def helper(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@torch.jit.script
def add(x: torch.Tensor, y: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    return x + y * scale


@torch.jit.script
def calls_another(x: torch.Tensor) -> torch.Tensor:
    return helper(x) * torch.tensor([1.0, 2.0])


@torch.jit.script
def many(
    n: int,
    flag: bool,
    text: str,
    numbers: list[float],
    table: dict[str, torch.Tensor],
    pair: tuple[int, str],
    maybe: torch.Tensor | None = None,
    where: torch.device = CPU,
) -> int:
    return n


@torch.jit.script
def make_point(x: torch.Tensor) -> Point:
    return Point(x, "here")


@torch.jit.script
def take_point(p: Point) -> torch.Tensor:
    return p.x


@torch.jit.script
def next_color(c: Color) -> Color:
    if c == Color.RED:
        return Color.GREEN
    return Color.RED


@torch.jit.script
def make_counter(n: int) -> Counter:
    return Counter(n)


@torch.jit.script
def take_counter(c: Counter) -> int:
    return c.value() + 1


@torch.jit.script
def everything() -> tuple[int, float, complex, bool, str, int | None, list[int], dict[str, int], torch.device]:
    return 1, 2.5, 3j, True, "text", None, [1, 2], {"a": 1}, torch.device("cpu")


@torch.jit.script
def nothing(x: torch.Tensor) -> None:
    x.add_(1)


@torch.jit.script
def later(x: torch.Tensor) -> torch.jit.Future[torch.Tensor]:
    return torch.jit.fork(helper, x)


class Scaler(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, x: torch.Tensor, bias: float = 1.0) -> torch.Tensor:
        self.calls += 1
        return x * self.factor + bias + self.calls

    @torch.jit.export
    def called(self) -> int:
        return self.calls
