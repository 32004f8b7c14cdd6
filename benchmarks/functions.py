"""The functions that the benchmarks call."""

from __future__ import annotations

import torch


@torch.jit.script
def script_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def python_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def python_echo(x: torch.Tensor) -> torch.Tensor:
    return x


def python_count(value: object) -> int:
    """How many tensors there are in a value, or numbers in a tensor."""
    return value.numel() if isinstance(value, torch.Tensor) else len(value)  # type: ignore[arg-type]


class Stage:
    """A part of a model, on a worker."""

    def step(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def small_tensors() -> tuple[torch.Tensor, torch.Tensor]:
    """Two float32[8]: the arguments of a small call."""
    return torch.rand(8), torch.rand(8)
